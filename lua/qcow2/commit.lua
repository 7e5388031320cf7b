-- SPDX-License-Identifier: MIT
-- Commit: what an image has beyond its backing file moves into the backing file, or into one further down.
--
-- Only the base is opened for writing, and the image itself when it is to be emptied. The layers between are read.
local core = require("qcow2.core")
local image = require("qcow2.image")
local job = require("qcow2.job")
local options = require("qcow2.options")
local references = require("qcow2.references")
local size = require("qcow2.size")

local raw, state_of = image.raw, image.state_of

local known = {
  base = "string",
  keep = "boolean",
  rate = "size",
  references = "string|table|function",
  source = "table",
  threads = "integer",
}

local function check(disk, given)
  local o = options.check(given, known)
  if type(disk) ~= "string" and (type(disk) ~= "userdata" or debug.getmetatable(disk) ~= core.classes.image) then
    error("disk must be a path or an open image, not " .. type(disk), 3)
  elseif o.threads and o.threads < 1 then
    error("threads must be at least 1", 3)
  end
  local rate = size.argument(o.rate, "rate") or 0
  return o, rate
end

-- Does `path` lead where the user's word for the base leads: the stored name, the path, or another spelling of it?
local function is_base(wanted, top, name, path)
  if wanted == name or wanted == path then
    return true
  end
  local real = core.realpath(path)
  return real ~= nil and (core.realpath(wanted) == real or core.realpath(references.resolve(top, wanted)) == real)
end

-- Opens the layers below `top` down to the base, by what each one names. gives: list, the base last; all of them
-- are in `opened` too.
local function open_layers(top, o, opened)
  local layers, layer, policy = {}, top, o.references or state_of(top).references
  while true do
    local name, format = raw.names(layer)
    local state = state_of(layer)
    if not name and layer == top then
      return nil, "Image does not have a backing file", "conflict"
    elseif not name then
      return nil, ("Did not find '%s' in the backing chain of '%s'"):format(references.escape(o.base),
        references.escape(top.path)), "missing"
    elseif state.probed_reference then
      return nil, ("'%s' was reached by probing, so its own backing file '%s' is not opened; store the backing "
        .. "format (rebase -u -F)"):format(references.escape(state.path), references.escape(name)), "refused"
    elseif format and format ~= "qcow2" and format ~= "raw" then
      return nil, ("Unknown backing format '%s'"):format(references.escape(format)), "unsupported"
    end
    local path, message, kind, errno = references.allow(policy, state.path, name, "backing")
    if not path then
      return nil, message, kind, errno
    end
    local last = not o.base or is_base(o.base, top.path, name, path)
    layer, message, kind, errno = image.open(path, { mode = last and "rw" or "r", format = format,
      references = policy })
    if not layer then
      return nil, ("Could not open backing file: %s"):format(message), kind, errno
    end
    opened[#opened + 1], layers[#layers + 1] = layer, layer
    state_of(layer).probed_reference = format == nil
    if last then
      return layers
    end
  end
end

-- Hangs the layers below one another, from the base up.
local function attach(top, layers)
  local base = layers[#layers]
  local ok, message, kind, errno = base:attach()
  for i = #layers, 1, -1 do
    local above = layers[i - 1] or top
    if ok then
      ok, message, kind, errno = raw.attach_backing(above, layers[i])
    end
    if ok then
      state_of(above).below = state_of(layers[i])
      ok, message, kind, errno = image.attach_data(above, state_of(above))
    end
  end
  return ok, message, kind, errno
end

---@see qcow2.commit
return function(disk, given)
  local o, rate = check(disk, given)
  -- The layers between know nothing of what went past them: emptying the image would bring them back to light.
  local keep = o.keep or o.base ~= nil
  local opened = {} -- closed at the end, the base first: what it says about its last flush matters most
  local function finish(complete)
    local result = { complete or nil }
    for i = #opened, 1, -1 do
      local fine, message, kind, errno = opened[i]:close()
      if not fine and complete and result[1] then
        result = { nil, message, kind, errno }
      end
    end
    return table.unpack(result, 1, 4)
  end
  local top = disk
  if type(disk) == "string" then
    local opening = {}
    for key, value in pairs(o.source or {}) do
      opening[key] = value
    end
    opening.mode = keep and "r" or "rw"
    local why, why_kind, why_errno
    top, why, why_kind, why_errno = image.open(disk, opening)
    if not top then
      return nil, why, why_kind, why_errno
    end
    opened[1] = top
  elseif select(2, raw.attached(disk)) then
    return nil, "The backing chain is open already for reading; close the image first", "conflict"
  end
  local handle
  local layers, message, kind, errno = open_layers(top, o, opened)
  local ok = layers
  if layers then
    ok, message, kind, errno = attach(top, layers)
  end
  if ok then
    handle, message, kind, errno = core.commit(top, layers[#layers], keep, rate, o.threads)
  end
  if not handle then
    finish(false)
    return nil, message, kind, errno
  end
  return job.new(handle, { top }, finish)
end
