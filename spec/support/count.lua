-- SPDX-License-Identifier: MIT
-- A busted output handler for one spec file: failures in full, one line when all is well, and the counts
-- into the file that Q2_COUNT names, where the runner sums them.
return function(options)
  local busted = require("busted")
  local handler = require("busted.outputHandlers.base")()

  local function text_of(message)
    if type(message) == "string" then
      return message
    elseif message == nil then
      return "(no message)"
    end
    return require("pl.pretty").write(message)
  end

  local function describe(word, item)
    local trace = item.element.trace
    if not (trace and trace.short_src) then
      trace = item.trace
    end
    local where = trace and trace.short_src and trace.short_src .. ":" .. tostring(trace.currentline) or "?"
    io.write(word, " ", where, "\n  ", item.name, "\n")
    io.write("    ", (text_of(item.message):gsub("\n", "\n    ")), "\n")
    local traceback = item.trace and item.trace.traceback
    if word == "ERROR" and traceback then
      io.write("    ", (traceback:gsub("\n", "\n    ")), "\n")
    end
  end

  local function suite_end()
    for _, item in ipairs(handler.failures) do
      describe("FAILED", item)
    end
    for _, item in ipairs(handler.errors) do
      describe("ERROR", item)
    end
    for _, item in ipairs(handler.pendings) do
      describe("PENDING", item)
    end
    -- Errors outside of a spec (in a describe block or a whole file) are in `errors` only.
    local failed = handler.failuresCount + handler.errorsCount
    local name = table.concat(options.arguments, " ")
    io.write(("%-6s %-44s %4d in %5.1f s\n"):format(failed == 0 and "ok" or "FAILED", name,
      handler.successesCount, handler.getDuration()))
    io.flush()
    local path = os.getenv("Q2_COUNT")
    if path then
      local out = assert(io.open(path, "w"))
      out:write(("%d %d %d\n"):format(handler.successesCount, failed, handler.pendingsCount))
      assert(out:close())
    end
    return nil, true
  end

  busted.subscribe({ "suite", "end" }, suite_end)
  return handler
end
