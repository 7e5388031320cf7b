-- SPDX-License-Identifier: MIT
-- qemu-img and qemu-io as a Lua interface: the judge. Every function but qemu.img raises when
-- the program fails. Programs run in the image's own folder, so that relative
-- names in options and images mean the same to QEMU (which asks the current directory for data files)
-- and to us (who ask the image's folder).

local dkjson = require "dkjson"
local sh = require "spec.support.sh"

local qemu = {}

local function folder(path)
  return path:match("^(/.*)/[^/]*$") or sh.root()
end

--- qemu-img with any words. gives: the result of sh.run, whatever its code.
function qemu.img(words, options)
  return sh.run({ "qemu-img", table.unpack(words) }, options)
end

--- Starts a virtual machine of sorts: a qemu-io that has the file open until its close method is called or its variable
-- leaves its block. It has the file when this returns, and has run these commands. We wait until it asks for the next
-- command: to look by opening the file could be what makes QEMU fail.
function qemu.holds(path, format, commands)
  local said = os.tmpname()
  local pipe = assert(io.popen(("cd %s && exec qemu-io -f %s %s >%s 2>&1"):format(sh.quote(folder(path)), format,
    sh.quote(path), said), "w"))
  local machine = {}
  function machine.close()
    if pipe then
      pipe:write("quit\n")
      pipe:close()
      os.remove(said)
      pipe = nil
    end
  end
  -- One line at a time: qemu-io waits for its input before it looks at what it has read already.
  for n = 0, #(commands or {}) do
    pipe:write(n > 0 and commands[n] .. "\n" or "")
    pipe:flush()
    local deadline = os.time() + 30
    while select(2, sh.slurp(said):gsub("qemu%-io>", "")) <= n do
      assert(os.time() < deadline, "qemu-io did not come so far within thirty seconds: " .. sh.slurp(said))
      os.execute("sleep 0.02")
    end
  end
  return setmetatable(machine, { __close = machine.close })
end

local BAD_OPTION = { "unrecognized option '[^\n]*'", "invalid option %-%- '.'", "missing argument for option '[^\n]*'",
  "option requires an argument %-%- '.'", "option '[^\n]*' requires an argument" }

--- What a program said, so that an older qemu-img and ours can be compared: who speaks is always qcow2, each mistake in
-- the grammar of options has the same words, a number that is none is only called invalid (QEMU 10 repeats it or names
-- its bounds), and no line points to the help.
function qemu.plain(said)
  said = said:gsub("qemu%-img", "qcow2"):gsub("Try '[^\n]*' for more [^\n]*\n", "")
    :gsub("^qcow2 %l+: ", "qcow2: ")
    :gsub("%-%-output expects 'human' or 'json' not '[^\n]*'", "--output must be used with human or json as argument.")
    :gsub("(Invalid [%l ]+ specified)[^\n]*\n", "%1\n"):gsub("qcow2: kilobytes, [^\n]*\n", "")
  for _, pattern in ipairs(BAD_OPTION) do
    said = said:gsub(pattern, "bad option")
  end
  return said
end

local function img(path, words, options)
  options = options or {}
  options.cwd = options.cwd or folder(path)
  return sh.check({ "qemu-img", table.unpack(words) }, options)
end

local function append(words, ...)
  for _, word in ipairs { ... } do words[#words + 1] = word end
  return words
end

local function sorted_keys(map)
  local keys = {}
  for key in pairs(map) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

--- { cluster_size = 512, lazy_refcounts = true } -> "cluster_size=512,lazy_refcounts=on"
function qemu.option_list(map)
  local out = {}
  for _, key in ipairs(sorted_keys(map)) do
    local value = map[key]
    if type(value) == "boolean" then value = value and "on" or "off" end
    out[#out + 1] = key .. "=" .. tostring(value):gsub(",", ",,")
  end
  return table.concat(out, ",")
end

--- Makes an image. options: `size` (bytes or text; nil with a backing file), `format` (default qcow2),
-- everything else goes to -o.
function qemu.create(path, options)
  local words, rest = { "create", "-q" }, {}
  for key, value in pairs(options) do
    if key ~= "size" and key ~= "format" then rest[key] = value end
  end
  append(words, "-f", options.format or "qcow2")
  if next(rest) then append(words, "-o", qemu.option_list(rest)) end
  append(words, path, options.size)
  return img(path, words)
end

--- Runs qemu-io commands ("write -P 5 0 64k", "write -z 1M 64k", "write -zu ...", "discard 0 64k",
-- "write -c -P 9 0 64k", "read -P 5 0 64k") in one process, without waiting for the host's disk.
-- options: format (default qcow2), read_only, image_opts (the path is then driver=...), cwd.
-- Raises when a command fails or a pattern does not match. gives: the output.
function qemu.io(path, commands, options)
  options = options or {}
  local words = { "qemu-io", "-t", "unsafe", "-d", "unmap" }
  if options.read_only then append(words, "-r") end
  if options.image_opts then
    append(words, "--image-opts")
  else
    append(words, "-f", options.format or "qcow2")
  end
  for _, command in ipairs(commands) do append(words, "-c", command) end
  append(words, path)
  local result = sh.check(words, { cwd = options.cwd or folder(path), timeout = options.timeout })
  local text = result.stdout .. result.stderr
  if text:find("verification failed", 1, true) or text:find(" failed: ", 1, true) then
    error(("%s\n%s"):format(result.command, text), 2)
  end
  return text
end

local function decode(text)
  local value, _, message = dkjson.decode(text)
  if value == nil then error("no JSON: " .. tostring(message) .. "\n" .. text, 3) end
  return value
end

qemu.decode = decode

--- `info --output=json` as a table (a list of them with options.chain).
function qemu.info(path, options)
  options = options or {}
  local words = { "info", "--output=json" }
  if options.chain then append(words, "--backing-chain") end
  if options.format then append(words, "-f", options.format) end
  return decode(img(path, append(words, path), { cwd = options.cwd }).stdout)
end

--- `map --output=json`: list of { start, length, depth, present, zero, data, offset }.
function qemu.map(path, options)
  options = options or {}
  local words = { "map", "--output=json" }
  if options.image_opts then
    append(words, "--image-opts")
  else
    append(words, "-f", options.format or "qcow2")
  end
  return decode(img(path, append(words, path), { cwd = options.cwd }).stdout)
end

--- `check --output=json`. gives: the report and the exit code (0 sound, 2 corrupt, 3 leaks).
-- options.repair: "leaks" or "all".
function qemu.check(path, options)
  options = options or {}
  local words = { "check", "--output=json", "-f", "qcow2" }
  if options.repair then append(words, "-r", options.repair) end
  local result = sh.run({ "qemu-img", table.unpack(append(words, path)) }, { cwd = folder(path) })
  if result.code ~= 0 and result.code ~= 2 and result.code ~= 3 then
    error(("qemu-img check: exit code %d\n%s"):format(result.code, result.stderr), 2)
  end
  return decode(result.stdout:match("%b{}%s*$") or result.stdout), result.code
end

--- True when qemu-img finds neither corruptions nor leaks; else false and the report's text.
function qemu.sound(path)
  local result = sh.run({ "qemu-img", "check", "-f", "qcow2", path }, { cwd = folder(path) })
  return result.code == 0, result.stdout .. result.stderr
end

--- `convert`. options: source_format (default qcow2), format (default raw), compress, snapshot, target_exists,
-- image_opts (the source is driver=...), options (map for -o), words (more words).
function qemu.convert(source, target, options)
  options = options or {}
  local words = { "convert", "-t", "unsafe" }
  if options.image_opts then
    append(words, "--image-opts")
  else
    append(words, "-f", options.source_format or "qcow2")
  end
  append(words, "-O", options.format or "raw")
  if options.compress then append(words, "-c") end
  if options.target_exists then append(words, "-n") end
  if options.snapshot then append(words, "-l", options.snapshot) end
  if options.options then append(words, "-o", qemu.option_list(options.options)) end
  append(words, table.unpack(options.words or {}))
  return img(target, append(words, source, target), { cwd = options.cwd or folder(source) })
end

--- The whole disk as QEMU reads it, as a string. `scratch`: a path that may be overwritten.
function qemu.read_all(path, scratch, options)
  qemu.convert(path, scratch, options)
  local bytes = sh.slurp(scratch)
  os.remove(scratch)
  return bytes
end

--- `compare`: true, or false and the text.
function qemu.compare(a, b, options)
  options = options or {}
  local result = sh.run({ "qemu-img", "compare", "-f", options.format_a or "qcow2", "-F",
    options.format_b or "qcow2", a, b }, { cwd = folder(a) })
  if result.code > 1 then error(result.stderr, 2) end
  return result.code == 0, result.stdout
end

--- `snapshot`: qemu.snapshot(path, "-c", "name"); also -a, -d, -l.
function qemu.snapshot(path, ...)
  return img(path, append(append({ "snapshot" }, ...), path)).stdout
end

--- `bitmap`: qemu.bitmap(path, name, "--add", "-g", "64k"); also --disable --enable --clear --remove,
-- "--merge", source.
function qemu.bitmap(path, name, ...)
  local words = append({ "bitmap" }, ...)
  return img(path, append(words, "-f", "qcow2", path, name))
end

--- `rebase`: options: backing (name or ""), backing_format, unsafe.
function qemu.rebase(path, options)
  local words = { "rebase", "-q", "-f", "qcow2" }
  if options.unsafe then append(words, "-u") end
  append(words, "-b", options.backing or "")
  if options.backing_format then append(words, "-F", options.backing_format) end
  return img(path, append(words, path))
end

--- `resize`: qemu.resize(path, "2M") or with more words: qemu.resize(path, "1M", "--shrink").
function qemu.resize(path, size, ...)
  local words = append({ "resize", "-q" }, ...)
  return img(path, append(words, path, size))
end

--- `amend -o`.
function qemu.amend(path, options)
  return img(path, { "amend", "-q", "-f", "qcow2", "-o", qemu.option_list(options), path })
end

--- `commit`.
function qemu.commit(path, ...)
  return img(path, append(append({ "commit", "-q" }, ...), path))
end

return qemu
