-- SPDX-License-Identifier: MIT
-- Opens the images that a command line names: by file name and -f, or by --image-opts; with the reference policy
-- of --allow and QCOW2_ALLOW. What the command line itself names is allowed by that naming.
local core = require("qcow2.core")
local qcow2 = require("qcow2")
local escape = require("qcow2.references").escape
local try = require("qcow2.cli.context").try

local images = {}

local FORMATS = { qcow2 = true, raw = true }
local CACHE_MODES = { none = true, off = true, writeback = true, writethrough = true, directsync = true, unsafe = true }

---Is this one of the words for a cache mode? All go through the host's cache; they differ in what is flushed.
---@param word string
---@return boolean
function images.is_cache_mode(word)
  return CACHE_MODES[word] == true
end

---The directory of a path, as the path says it.
---@param path string
---@return string
function images.directory(path)
  return path:match("^(.*/)[^/]*$") or "."
end

---A name stored in the image at `path`, seen from where we are.
---@param path string
---@param name string
---@return string
function images.resolve(path, name)
  if name:sub(1, 1) == "/" then
    return name
  end
  return (path:match("^(.*/)[^/]*$") or "") .. name
end

---The reference policy for the image at `path`: its own directory, and what --allow and QCOW2_ALLOW list.
---@param context qcow2.cli.context
---@param path string
function images.references(context, path)
  if #context.allowed == 0 then
    return "beside"
  end
  return { images.directory(path), table.unpack(context.allowed) }
end

---`message`, begun with the file's name unless it is there already.
function images.could_not_open(name, message)
  local lead = ("Could not open '%s': "):format(escape(name))
  return message:sub(1, #lead) == lead and message or lead .. message
end

-- Options of a node of --image-opts as a tree: { values = {}, children = { file = {...}, backing = {...} } }.
local function tree_of(entries)
  local root = { values = {}, children = {} }
  for _, entry in ipairs(entries) do
    local node, key = root, entry.key
    while true do
      local child, rest = key:match("^(file)%.(.+)$")
      if not child then
        child, rest = key:match("^(backing)%.(.+)$")
      end
      if not child then
        child, rest = key:match("^(data%-file)%.(.+)$")
      end
      if not child then
        break
      end
      node.children[child] = node.children[child] or { values = {}, children = {} }
      node, key = node.children[child], rest
    end
    node.values[key] = entry.value
  end
  return root
end

local function switch(node, key)
  local value = node.values[key]
  node.values[key] = nil
  if value ~= nil and value ~= "on" and value ~= "off" then
    return nil, ("Parameter '%s' expects 'on' or 'off'"):format(key)
  end
  return value == "on"
end

local function no_more(node, driver)
  local key = next(node.values)
  if key then
    return nil, ("Block format '%s' does not support the option '%s'"):format(driver, key)
  end
  return true
end

-- The path of a protocol node: driver=file or nothing, and a file name.
local function path_of(node, what)
  if not node or not node.values.filename then
    return nil, ("A block device must be specified for \"%s\""):format(what)
  end
  local driver, path = node.values.driver or "file", node.values.filename
  if driver ~= "file" and driver ~= "host_device" then
    return nil, ("Unknown driver '%s'"):format(driver)
  end
  node.values.driver, node.values.filename = nil, nil
  local fine, message = no_more(node, driver)
  if fine and next(node.children) then
    fine, message = nil, ("Block format '%s' does not support the option '%s'"):format(driver, next(node.children))
  end
  if not fine then
    return nil, message
  end
  return path
end

local open_node

-- What a node says about its data file and its backing file, into `opening`.
local function take_references(context, node, opening)
  local message
  local data_file, backing = node.children["data-file"], node.children.backing
  if data_file then
    opening.data_file, message = path_of(data_file, "data-file")
    if message then
      return nil, message
    end
  end
  if node.values.backing == "" then
    -- As QEMU reads a layer by itself: what it does not have is zeros, for an empty disk shows nothing else.
    local nothing <close> = assert(core.store_memory(0))
    opening.backing = assert(core.image_open(nothing, "raw"))
    node.values.backing = nil
  elseif backing then
    opening.backing, message = open_node(context, backing, {})
    if message then
      return nil, message
    end
  end
  local key = node.values["encrypt.key-secret"]
  if key and not context.secrets[key] then
    return nil, ("No secret with id '%s'"):format(key)
  end
  node.values["encrypt.key-secret"], node.values["encrypt.format"] = nil, nil
  return true
end

-- The path and the format of a node: of a protocol node itself, else of its child "file".
local function place_of(node)
  local driver = node.values.driver
  if driver == "file" or driver == "host_device" then
    local filename = node.values.filename
    node.values.filename = nil
    local path, message = path_of({ values = { filename = filename }, children = {} }, "file")
    return path, path and "raw" or message
  elseif driver and not FORMATS[driver] then
    return nil, ("Unknown driver '%s'"):format(driver)
  end
  local path, message = path_of(node.children.file, "file")
  return path, path and driver or message
end

function open_node(context, node, asked)
  local path, format = place_of(node)
  if not path then
    return nil, format
  end
  node.values.driver = nil
  local force_share, message = switch(node, "force-share")
  if not message then
    local _
    _, message = switch(node, "read-only")
  end
  if message then
    return nil, message
  end
  local opening = {
    format = format,
    mode = asked.mode,
    snapshot = asked.snapshot,
    damaged = asked.damaged,
    force_share = asked.force_share or force_share or nil,
    references = images.references(context, path),
  }
  if asked.tables_only then
    opening.data_file = false
  end
  local fine
  fine, message = take_references(context, node, opening)
  if fine then
    fine, message = no_more(node, format or "qcow2")
  end
  if not fine then
    return nil, message
  end
  return qcow2.open(path, opening)
end

---What `images.open` takes beside the name.
---@class qcow2.cli.asked
---@field format? string        -f
---@field image_opts? boolean   the name is an option list
---@field force_share? boolean  -U
---@field mode? "r"|"rw"
---@field snapshot? string
---@field tables_only? boolean  the external data file is not opened
---@field damaged? boolean      tables may lie where none can be: for a check
---@field whole? boolean        all that it names is opened at once: one that misses a file is refused

-- The image, with its data file and its backing chain when `whole` asks for them.
local function attached(image, name, whole)
  local fine, message, kind = true, nil, nil
  if whole then
    fine, message, kind = image:attach()
  end
  if not fine then
    image:close()
    return nil, images.could_not_open(name, message), kind
  end
  return image
end

---Opens an image by what the command line says.
---@param context qcow2.cli.context
---@param name string
---@param asked qcow2.cli.asked
---@return qcow2.image? image, string? message, qcow2.kind? kind
function images.open(context, name, asked)
  if asked.image_opts then
    if asked.format then
      return nil, "--image-opts and --format are mutually exclusive"
    end
    local entries = require("qcow2.cli.optlist").parse(name, "file")
    for _, entry in ipairs(entries) do
      if entry.key == "file" then
        local node = entry.value
        return nil, images.could_not_open(name, ("Cannot find device='%s' nor node-name='%s'"):format(node, node))
      end
    end
    local image, message, kind = open_node(context, tree_of(entries), asked)
    if not image then
      return nil, images.could_not_open(name, message), kind
    end
    return attached(image, name, asked.whole)
  end
  if asked.format and not FORMATS[asked.format] then
    return nil, images.could_not_open(name, ("Unknown driver '%s'"):format(asked.format))
  end
  local opening = {
    format = asked.format,
    force_share = asked.force_share,
    mode = asked.mode,
    snapshot = asked.snapshot,
    damaged = asked.damaged,
    references = images.references(context, name),
  }
  if asked.tables_only then
    opening.data_file = false
  end
  local image, message, kind = qcow2.open(name, opening)
  if not image then
    return nil, images.could_not_open(name, message), kind
  end
  return attached(image, name, asked.whole)
end

---Closes an image that was written to. What the work before answered counts most: after a failed write the close
---only repeats it.
---@type fun(image: qcow2.image, done: any, message?: string): any, string?
images.close = require("qcow2.image").close_after

---A property that is read from the image's tables when it is asked for, and raises when they are damaged.
---@param image qcow2.image
---@param name string
---@return any value, string? message
function images.table_of(image, name)
  local fine, value = try(function()
    return image[name]
  end)
  if not fine then
    return nil, images.could_not_open(image.path, tostring(value))
  end
  return value
end

return images
