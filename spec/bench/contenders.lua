-- SPDX-License-Identifier: MIT
-- Contenders that groups have in common: lists of them, ours first.
local contenders = {}

---The same command line for both programs.
function contenders.both(bench, ...)
  return {
    { label = "qcow2", command = { bench.program, ... } },
    { label = "qemu-img", command = { "qemu-img", ... } },
  }
end

---All of a list read these files.
function contenders.reading(list, ...)
  for _, one in ipairs(list) do
    one.reads = { ... }
  end
  return list
end

---Both programs convert `source` with these options more.
---@param options {from:string, to:string, dir:string?}
function contenders.converting(bench, options, source, ...)
  local list = contenders.both(bench, "convert", "-f", options.from, "-O", options.to, ...)
  for _, one in ipairs(contenders.reading(list, source)) do
    table.insert(one.command, source)
    table.insert(one.command, bench:output(one.label, nil, options.dir))
    one.format = options.to
  end
  return list
end

---What a plain copy of the raw disk takes.
function contenders.cp(bench)
  local raw = bench.inputs:disk_raw()
  return { label = "cp", command = { "cp", "--sparse=auto", raw, bench:output("cp") }, reads = { raw } }
end

return contenders
