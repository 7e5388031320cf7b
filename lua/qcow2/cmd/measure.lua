-- SPDX-License-Identifier: MIT
-- `measure`: how large an image of some format would be, with another image's contents or of a given size.
local create = require("qcow2.cmd.create")
local creation = require("qcow2.cli.creation")
local formats = require("qcow2.cli.formats")
local images = require("qcow2.cli.images")
local json = require("qcow2.cli.json")
local measuring = require("qcow2.measure")
local options = require("qcow2.cli.options")
local qcow2 = require("qcow2")
local text = require("qcow2.cli.text")

-- Our own members come last.
local ORDER = "bitmaps required fully-allocated data-file-required data-file-fully-allocated"

local measure = {
  name = "measure",
  summary = "Calculate the file size that a new image needs",
  details = {
    "With FILE: for a conversion of it; with --size: for a disk of that size. The required size is enough for what "
      .. "FILE holds now, the fully allocated size for anything that may be written later.",
    "With -o data_file= the sizes are those of the image, which has metadata only, and the data file has lines of "
      .. "its own.",
  },
  options = {
    options.output,
    { short = "O", long = "target-format", arg = "FMT", choices = { "qcow2", "raw" },
      help = "format of the new image (default: raw)" },
    { short = "o", long = "target-format-options", arg = "OPTIONS", many = true, hidden = { "options" },
      help = "creation options of the new image, key=value,..." },
    { short = "s", long = "size", arg = "SIZE", help = "measure for an empty disk of SIZE bytes" },
    options.format,
    options.image_opts,
    { short = "l", long = "snapshot", arg = "SNAPSHOT", help = "measure for an internal snapshot of FILE" },
    options.force_share,
    options.object,
  },
  operands = { { name = "FILE", usage = "[FILE]", help = "the image whose contents the new one shall have" } },
}

local function contradiction(values)
  local file = values.operands[1]
  if values.operands[2] then
    return "At most one filename argument is allowed."
  elseif not file and (values.image_opts or values.format or values.snapshot) then
    return "--image-opts, -f, and -l require a filename argument."
  elseif not file and not values.size then
    return "Either --size N or one filename must be specified."
  elseif file and values.size then
    return "--size N cannot be used together with a filename."
  end
end

-- The options as the library takes them; nil and a message.
local function read_options(context, values, format)
  local list, message = formats.join_options(values.target_format_options)
  if not list then
    return nil, message
  end
  local made
  made, message = creation.parse(format, list)
  if not made then
    context:report(message)
    return nil, ("Invalid options for file format '%s'"):format(format)
  end
  local fine
  fine, message = creation.check(made)
  if not fine then
    return nil, message
  end
  local o = creation.options(made)
  o.size = values.size and qcow2.size(values.size)
  return o
end

local function print_human(context, figures)
  context:printf("required size: %d\nfully allocated size: %d\n", figures.required, figures.fully_allocated)
  if figures.bitmaps then
    context:printf("bitmaps size: %d\n", figures.bitmaps)
  end
  if figures.data_required then
    context:printf("data file required size: %d\ndata file fully allocated size: %d\n", figures.data_required,
      figures.data_fully_allocated)
  end
end

local function print_json(context, figures)
  context:write(json.pretty(json.object(ORDER, {
    bitmaps = figures.bitmaps,
    required = figures.required,
    ["fully-allocated"] = figures.fully_allocated,
    ["data-file-required"] = figures.data_required,
    ["data-file-fully-allocated"] = figures.data_fully_allocated,
  })), "\n")
end

-- The image to measure for; the second result is what must be closed after it.
local function open_source(context, values)
  local image, message = images.open(context, values.operands[1],
    { format = values.format, image_opts = values.image_opts, force_share = values.force_share, whole = true })
  if not image then
    return nil, message
  elseif not values.snapshot then
    return image
  end
  local word = values.snapshot
  local snapshots, why, disk
  if image.format == "qcow2" then
    snapshots, why = images.table_of(image, "snapshots")
  else
    why = "Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily loading "
      .. "internal snapshots"
  end
  if snapshots then
    local id, name = word:match("snapshot%.id=([^,]*)"), word:match("snapshot%.name=([^,]*)")
    for _, field in ipairs({ "id", "name" }) do
      for _, snapshot in ipairs(snapshots) do
        local fits = snapshot[field] == word
        if id or name then
          fits = (not id or snapshot.id == id) and (not name or snapshot.name == name)
        end
        if fits and not disk then
          disk, why = image:snapshot(snapshot.id)
        end
      end
    end
    why = "Failed to load snapshot: " .. (why or "Can't find snapshot")
  end
  if not disk then
    image:close()
    return nil, why
  end
  return disk, image
end

local function figures_of(context, values, o)
  if not values.operands[1] then
    return measuring.figures(nil, o)
  end
  local source <close>, whole = open_source(context, values)
  if not source then
    return nil, whole
  end
  local _ <close> = whole
  -- The walk through the disk raises what the world does.
  local fine, figures, why = context.try(measuring.figures, source, o)
  if not fine then
    return nil, tostring(figures)
  end
  return figures, why
end

function measure.run(context, values)
  local format = values.target_format or "raw"
  local message = contradiction(values)
  if message then
    return nil, message
  elseif values.size then
    local fine, why = create.check_size(values.size)
    if not fine then
      return nil, why
    end
  end
  if not creation.formats[format] then
    return nil, ("Unknown file format '%s'"):format(text.escape(format))
  end
  local o
  o, message = read_options(context, values, format)
  if not o then
    return nil, message
  end
  local figures
  figures, message = figures_of(context, values, o)
  if not figures then
    return nil, message
  end
  local print_figures = values.output == "json" and print_json or print_human
  print_figures(context, figures)
  return 0
end

return measure
