-- SPDX-License-Identifier: MIT
-- `info`: what an image says about itself. Opens the image and nothing that it names (but for --backing-chain).
local images = require("qcow2.cli.images")
local json = require("qcow2.cli.json")
local listing = require("qcow2.listing")
local options = require("qcow2.cli.options")
local text = require("qcow2.cli.text")

-- QEMU keeps members in a hash table and prints them as they lie there; these are the orders that come out.
local NODE = "children backing-filename-format snapshots virtual-size filename cluster-size format actual-size "
  .. "format-specific full-backing-filename encrypted backing-filename dirty-flag"
local SPECIFIC = "compat compression-type lazy-refcounts bitmaps refcount-bits data-file encrypt data-file-raw corrupt "
  .. "extended-l2 data-file-path data-file-note"
local ENCRYPT = "ivgen-alg detached-header hash-alg cipher-alg uuid ivgen-hash-alg format cipher-mode slots "
  .. "payload-offset master-key-iters"
local SLOT = "active iters key-offset stripes"

local function round_up(value, unit)
  return (value + unit - 1) // unit * unit
end

-- The image's snapshots or bitmaps; nil when there are none. They are read as they are printed.
local function records_of(image, what, list)
  return #list > 0 and json.rows(function(...)
    listing.records(image, what, ...)
  end) or nil
end

-- Our own members come last: where the data file would be looked for, and what is worth knowing of it.
local function data_file_members(image, members)
  if not image.external_data then
    return
  end
  members["data-file"] = image.data_file
  members["data-file-raw"] = image.data_file_raw or false
  if image.data_file then
    members["data-file-path"] = images.resolve(image.path, image.data_file)
    local length = image.data_file_length
    if length and length < image.size then
      members["data-file-note"] = ("it ends after %d bytes; what is missing reads as zeros"):format(length)
    end
  else
    members["data-file-note"] = "the image does not name the file that holds its data"
  end
end

local function slot_object(slot)
  return json.object(SLOT, {
    active = slot.active,
    iters = slot.active and slot.iterations or nil,
    ["key-offset"] = slot.key_offset,
    stripes = slot.active and slot.stripes or nil,
  })
end

local function slot_objects(slots)
  local objects = {}
  for index, slot in ipairs(slots) do
    objects[index] = slot_object(slot)
  end
  return objects[1] and objects
end

-- Without a LUKS header that can be read the method alone is known.
local function encrypt_object(image)
  local header = image.encryption == "luks" and require("qcow2.luks").of(image)
  if not header then
    return json.object(ENCRYPT, { format = image.encryption })
  end
  return json.object(ENCRYPT, {
    ["ivgen-alg"] = header.ivgen,
    ["ivgen-hash-alg"] = header.ivgen_hash,
    ["detached-header"] = false,
    ["hash-alg"] = header.hash,
    ["cipher-alg"] = header.cipher,
    ["cipher-mode"] = header.mode,
    uuid = header.uuid,
    format = image.encryption,
    slots = slot_objects(header.slots),
    ["payload-offset"] = header.payload_offset,
    ["master-key-iters"] = header.iterations,
  })
end

local function specific_object(image, bitmaps)
  local members = {
    compat = image.version == 2 and "0.10" or "1.1",
    ["compression-type"] = image.compression_type,
    ["refcount-bits"] = image.refcount_bits,
    encrypt = image.encryption and encrypt_object(image),
  }
  if image.version >= 3 then
    members["lazy-refcounts"] = image.lazy_refcounts or false
    members.corrupt = image.corrupt or false
    members["extended-l2"] = image.extended_l2 or false
    members.bitmaps = records_of(image, "bitmap", bitmaps)
    data_file_members(image, members)
  end
  return json.object("type data", { type = "qcow2", data = json.object(SPECIFIC, members) })
end

local function file_object(image)
  local empty = json.object("", {})
  return json.object(NODE, {
    children = {},
    ["virtual-size"] = round_up(image.file_length, 512),
    filename = image.path,
    format = "file",
    ["actual-size"] = image.disk_size,
    ["format-specific"] = json.object("type data", { type = "file", data = empty }),
    ["dirty-flag"] = false,
  })
end

local function node_object(image, snapshots, bitmaps)
  local file = file_object(image)
  local members = {
    children = { json.object("name info", { name = "file", info = file }) },
    ["virtual-size"] = image.size,
    filename = image.path,
    format = image.format,
    ["actual-size"] = image.disk_size,
    ["dirty-flag"] = image.dirty or false,
  }
  if image.format == "qcow2" then
    members["cluster-size"] = image.cluster_size
    members.encrypted = image.encryption and true or nil
    members["format-specific"] = specific_object(image, bitmaps)
    members.snapshots = records_of(image, "snapshot", snapshots)
    if image.backing_file then
      members["backing-filename"] = image.backing_file
      members["full-backing-filename"] = images.resolve(image.path, image.backing_file)
      members["backing-filename-format"] = image.backing_format
    end
  end
  return json.object(NODE, members)
end

-- Members of an object or items of a list, one a line; QEMU shows dashes in names as spaces.
local function print_specific(context, value, indent)
  local function line(label, item)
    local composite = type(item) == "table"
    context:write(indent, label, composite and ":\n" or ": ")
    if composite then
      print_specific(context, item, indent .. "    ")
    else
      context:write(type(item) == "string" and text.escape(item) or tostring(item), "\n")
    end
  end
  if json.is_rows(value) then
    value.write_items(indent, false, function(rows) context:write(rows) end)
  elseif json.is_object(value) then
    for name, item in json.members(value) do
      line(name:gsub("-", " "), item)
    end
  else
    for index, item in ipairs(value) do
      line(("[%d]"):format(index - 1), item)
    end
  end
end

local function print_snapshots(context, snapshots, indent)
  if snapshots then
    context:write(indent, "Snapshot list:\n", indent, text.snapshot_heads(), "\n")
    snapshots.write_items(indent, false, function(rows) context:write(rows) end)
  end
end

local function print_backing(context, members, indent)
  local name, path = members["backing-filename"], members["full-backing-filename"]
  if not name then
    return
  end
  context:write(indent, "backing file: ", text.escape(name))
  if path ~= name then
    context:write(" (actual path: ", text.escape(path), ")")
  end
  context:write("\n")
  if members["backing-filename-format"] then
    context:write(indent, "backing file format: ", text.escape(members["backing-filename-format"]), "\n")
  end
end

local function print_node(context, node, indent, protocol)
  local members = node.members
  local size = members["virtual-size"]
  context:write(indent, protocol and "filename: " or "image: ", text.escape(members.filename), "\n")
  context:write(indent, protocol and "protocol type: " or "file format: ", members.format, "\n")
  context:write(indent, protocol and "file length: " or "virtual size: ",
    ("%s (%d bytes)\n"):format(text.size(size), size))
  context:write(indent, "disk size: ", text.size(members["actual-size"]), "\n")
  if members.encrypted then
    context:write(indent, "encrypted: yes\n")
  end
  if members["cluster-size"] then
    context:write(indent, ("cluster_size: %d\n"):format(members["cluster-size"]))
  end
  if members["dirty-flag"] then
    context:write(indent, "cleanly shut down: no\n")
  end
  print_backing(context, members, indent)
  print_snapshots(context, members.snapshots, indent)
  local specific = members["format-specific"]
  if specific and #specific.members.data.names > 0 then
    context:write(indent, "Format specific information:\n")
    print_specific(context, specific.members.data, indent .. "    ")
  end
  for _, child in ipairs(members.children) do
    context:write(indent, ("Child node '/%s':\n"):format(child.members.name))
    print_node(context, child.members.info, indent .. "    ", true)
  end
end

-- The node of an image; its lists are read when it is printed, but that they can be is known.
local function look_at(image)
  if image.format ~= "qcow2" then
    return node_object(image)
  end
  local snapshots, message = images.table_of(image, "snapshots")
  if not snapshots then
    return nil, message
  end
  local bitmaps, why = images.table_of(image, "bitmaps")
  if not bitmaps then
    return nil, why
  end
  return node_object(image, snapshots, bitmaps)
end

-- The nodes to show, top first; nil and a message when one of the chain does not open.
-- Their images go into `opened`, to be closed when all is shown: long lists are read as they are printed.
-- The library's walk down the chain says what may be opened; each image is then looked at by itself.
local function collect(context, values, opened)
  local name = values.operands[1]
  local image, message = images.open(context, name,
    { format = values.format, image_opts = values.image_opts, force_share = values.force_share })
  if not image then
    return nil, message
  end
  opened[1] = image
  local top, why = look_at(image)
  local nodes = { top }
  if not top then
    return nil, why
  elseif not values.backing_chain then
    return nodes
  end
  for depth, link in ipairs(image:chain()) do
    if link.missing then
      return nil, images.could_not_open(link.path, link.missing)
    elseif depth > 1 then
      local below, refused = images.open(context, link.path,
        { format = link.format, force_share = values.force_share })
      if not below then
        return nil, refused
      end
      opened[depth] = below
      nodes[depth], why = look_at(below)
      if not nodes[depth] then
        return nil, why
      end
    end
  end
  return nodes
end

local info = {
  name = "info",
  summary = "Display information about an image",
  details = {
    "Opens FILE and no file that it names, so that it is safe on images from anywhere and works when its backing "
      .. "file or its data file is missing. --backing-chain goes on to the backing files.",
  },
  options = {
    options.format,
    options.image_opts,
    { short = "b", long = "backing-chain", help = "show the backing files too, from FILE down" },
    options.force_share,
    options.output,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

function info.run(context, values)
  if #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  end
  local opened <close> = setmetatable({}, { __close = function(list)
    for _, image in ipairs(list) do
      image:close()
    end
  end })
  local nodes, message = collect(context, values, opened)
  if not nodes then
    return nil, message
  end
  if values.output == "json" then
    json.write(values.backing_chain and nodes or nodes[1], function(piece) context:write(piece) end)
    context:write("\n")
    return 0
  end
  for index, node in ipairs(nodes) do
    if index > 1 then
      context:write("\n")
    end
    print_node(context, node, "", false)
  end
  return 0
end

return info
