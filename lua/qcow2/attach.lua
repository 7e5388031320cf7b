-- SPDX-License-Identifier: MIT
-- The files of one image: opening each, and attaching what an image names (data file, backing image) by policy.
--
-- Each image has a state table (the handle's user value): path, mode, open options, identity of the file, and
-- `below`, the state of the attached backing image. What an image names is attached when it is first needed: the
-- core answers "missing", then attach() runs and the call is repeated. No handle of a lower layer is kept, so
-- that closing the one there is closes the files.
local core = require("qcow2.core")
local references = require("qcow2.references")

local layers = {}

local class = core.classes.image
local raw = class.__index -- the core's methods, before lua/qcow2/image.lua dresses the class

---The core's own methods of image handles, by name.
layers.raw = raw

function layers.state_of(self)
  return debug.getuservalue(self, 1) or {}
end

-- The format that an image is opened in for want of a named one.
local function probe(store, path, mode)
  local format, message, kind, errno = core.image_probe(store)
  if not format then
    return nil, message, kind, errno
  end
  if format == "unfinished" then
    return "qcow2" -- the core tells what it is
  elseif format ~= "qcow2" and format ~= "raw" then
    return nil, ("'%s' is in the format '%s', which cannot be read; name the format raw to take its bytes for the disk")
      :format(references.escape(path), format), "unsupported"
  elseif format == "raw" and mode == "rw" then
    return nil, ("'%s' was taken for raw by probing; name its format to write to it"):format(path), "conflict"
  end
  return format
end

-- What the library knows of an image that was opened from a store.
function layers.enter(self, store, state)
  local device, inode = store:identity()
  state.identity = device and device .. ":" .. inode
  debug.setuservalue(self, state, 1)
  return state
end

-- Opens one file as an image, attaching nothing. `probed` answers whether the format was a guess.
function layers.open_one(path, mode, format, store_flags, damaged)
  local store <close>, message, kind, errno = core.store_file(path, store_flags)
  if not store then
    return nil, message, kind, errno
  end
  local probed = format == nil
  if probed then
    format, message, kind, errno = probe(store, path, mode)
    if not format then
      return nil, message, kind, errno
    end
  end
  local self
  self, message, kind, errno = core.image_open(store, format, damaged)
  if not self then
    return nil, ("Could not open '%s': %s"):format(references.escape(path), message), kind, errno
  end
  return self, layers.enter(self, store, { path = path, mode = mode, format = format, probed = probed })
end

local MOST_LAYERS = 200

-- An image that was reached by probing gets no references of its own (SAFETY rule 8).
local function refuse_probed(state, what, name)
  return nil, ("'%s' was reached by probing, so its own %s '%s' is not opened; store the backing format (rebase -u -F)")
    :format(references.escape(state.path), what, references.escape(name)), "refused"
end

function layers.attach_data(self, state)
  local header = raw.header_fields(self)
  if not header or header.incompatible_features & 4 == 0 or raw.attached(self) then
    return true
  end
  local path = state.data_file
  local message, kind, errno
  local named = path ~= nil
  if path == false then
    return nil, "The external data file was not to be attached (data_file = false)", "missing"
  end
  if not path then
    local _, _, name = raw.names(self)
    if not name then
      return nil, ("'%s' does not name its external data file; give it as data_file")
        :format(references.escape(state.path)), "missing"
    end
    if state.probed_reference then
      return refuse_probed(state, "data file", name)
    end
    path, message, kind, errno = references.allow(state.references, state.path, name, "data_file")
    if not path then
      return nil, message, kind, errno
    end
  end
  local store
  store, message, kind, errno = core.store_file(path,
    { write = state.mode == "rw", force_share = state.force_share, no_device = not named })
  if not store then
    return nil, message, kind, errno
  end
  local ok
  ok, message, kind, errno = raw.attach_data(self, store)
  store:close()
  if ok then
    state.data_path = path
  end
  return ok, message, kind, errno
end

-- Opens the backing image that `self` names (or was given). gives it and its state.
local function open_backing(self, state)
  local name, format = raw.names(self)
  if state.backing == false then
    return nil, "The backing file was not to be attached (backing = false)", "missing"
  end
  if type(state.backing) == "userdata" then
    return state.backing, layers.state_of(state.backing)
  end
  local path = state.backing
  local message, kind, errno
  local named = path ~= nil
  format = state.backing_format or format
  if not path then
    if state.probed_reference then
      return refuse_probed(state, "backing file", name)
    end
    path, message, kind, errno = references.allow(state.references, state.path, name, "backing")
    if not path then
      return nil, message, kind, errno
    end
  end
  if format ~= nil and format ~= "qcow2" and format ~= "raw" then
    return nil, ("Unknown backing format '%s'"):format(references.escape(format)), "unsupported"
  end
  local backing, backing_state
  backing, backing_state, kind, errno = layers.open_one(path, "r", format,
    { force_share = state.force_share, no_device = not named })
  if not backing then
    return nil, ("Could not open backing file: %s"):format(backing_state), kind, errno
  end
  backing_state.references = state.references
  backing_state.force_share = state.force_share
  backing_state.probed_reference = backing_state.probed and not named
  return backing, backing_state
end

-- Attaches the backing image that `layer` names, when it is not attached yet. seen: identities of the layers
-- from the top down to here; a file that stands above already would make the chain a ring.
function layers.attach_backing(layer, seen)
  local state = layers.state_of(layer)
  seen[#seen + 1] = state.path
  if state.identity then
    seen[state.identity] = true
  end
  local _, attached = raw.attached(layer)
  if raw.names(layer) == nil or attached then
    return true
  end
  if #seen >= MOST_LAYERS then
    return nil, ("The backing chain of '%s' is longer than %d images"):format(references.escape(seen[1]), MOST_LAYERS),
      "range"
  end
  local backing, below, kind, errno = open_backing(layer, state)
  if not backing then
    return nil, below, kind, errno
  end
  local ok, message
  if below.identity and seen[below.identity] then
    ok, message, kind = nil, ("The backing chain of '%s' comes back to '%s'"):format(references.escape(seen[1]),
      references.escape(below.path)), "corrupt"
  else
    ok, message, kind, errno = raw.attach_backing(layer, backing)
  end
  if type(state.backing) ~= "userdata" then
    raw.close(backing)
  end
  if not ok then
    return nil, message, kind, errno
  end
  state.below = below
  return true
end

-- A new handle for the attached backing image, to be closed by the caller; nil when there is none.
function layers.lower(layer)
  local handle = raw.backing(layer)
  if handle then
    debug.setuservalue(handle, layers.state_of(layer).below, 1)
  end
  return handle
end

---Attaches data file and backing chain, layer by layer, as far as it goes.
function layers.attach(self)
  local layer, seen, first = self, {}, nil
  repeat
    local ok, message, kind, errno = layers.attach_data(layer, layers.state_of(layer))
    if not ok then
      first = first or { message, kind, errno }
    end
    ok, message, kind, errno = layers.attach_backing(layer, seen)
    if not ok then
      first = first or { message, kind, errno }
    end
    local next_layer = ok and layers.lower(layer)
    if layer ~= self then
      raw.close(layer)
    end
    layer = next_layer
  until not layer
  if first then
    return nil, first[1], first[2], first[3]
  end
  return true
end

-- Calls a core method; when it misses a referenced file, attaches what the image names and calls again.
function layers.with_references(self, method, ...)
  local result, message, kind, errno = method(self, ...)
  if result ~= nil or kind ~= "missing" then
    return result, message, kind, errno
  end
  local ok, why, why_kind, why_errno = layers.attach(self)
  result, message, kind, errno = method(self, ...)
  if result == nil and kind == "missing" and not ok then
    return nil, why, why_kind, why_errno
  end
  return result, message, kind, errno
end

return layers
