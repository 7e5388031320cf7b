-- SPDX-License-Identifier: MIT
-- `create`: makes a new image, as qemu-img does it and says it.
local create_image = require("qcow2.create")
local creation = require("qcow2.cli.creation")
local formats = require("qcow2.cli.formats")
local optlist = require("qcow2.cli.optlist")
local options = require("qcow2.cli.options")
local number = require("qcow2.cli.number")
local text = require("qcow2.cli.text")

local create = {
  name = "create",
  summary = "Create a new image",
  details = {
    "An image file that exists is overwritten. An external data file (-o data_file=NAME) that exists and holds data "
      .. "is not, unless the image to be overwritten names it as its own, -o overwrite=on allows it, or "
      .. "-o keep_data_file=on makes its contents the disk's without writing to it.",
    "Relative names of backing files and data files count from the image's directory and are stored as given.",
    "Without SIZE the disk is as large as its backing file, or as the data file that is kept.",
  },
  options = {
    options.with(options.format, { help = "format of the new image (default: raw)" }),
    { short = "b", long = "backing", arg = "FILE", help = "the backing file: what the new image does not hold" },
    { short = "F", long = "backing-format", arg = "FMT", choices = { "qcow2", "raw" },
      help = "format of the backing file" },
    { short = "u", long = "backing-unsafe", help = "do not open the backing file; it need not be there" },
    { short = "o", long = "options", arg = "OPTIONS", many = true,
      help = "creation options, key=value,...; -o help lists them" },
    options.quiet,
    options.object,
  },
  operands = {
    { name = "FILE", help = "the image to make" },
    { name = "SIZE", usage = "[SIZE]", help = "size of the disk; k, M, G, T, P, E are powers of 1024" },
  },
}

---What -f, -o, -b, -F and SIZE say together; nil and a message.
local function read_options(values, format, list)
  local made, message = creation.parse(format, list)
  if not made then
    return nil, message
  end
  local size = values.operands[2]
  if size and made.values.size then
    return nil, "The image size must be specified only once"
  end
  for name, value in pairs({ size = size, backing_file = values.backing, backing_fmt = values.backing_format }) do
    local fine
    fine, message = creation.set(made, name, value)
    if not fine then
      return nil, message
    end
  end
  return made
end

---The rest of a command once all is read: says the line, checks, makes.
---@param context qcow2.cli.context
---@param values table
---@param made qcow2.cli.creation
---@param plan table             of create.resolve
---@param overwrite_image? boolean
---@return integer? code, string? message
function create.make(context, values, made, plan, overwrite_image)
  local shown = text.escape(plan.path)
  if not values.quiet then
    context:write(creation.line(made, plan.path, plan.size))
    context:flush()
  end
  plan.overwrite_image, plan.overwrite_data = overwrite_image, made.values.overwrite
  local fine, message = creation.check(made)
  if fine then
    fine, message = create_image.check(plan)
  end
  if fine then
    fine, message = create_image.make(plan)
  end
  if not fine then
    return nil, ("%s: %s"):format(shown, message)
  end
  for _, note in ipairs(message) do
    context:report(("%s: %s"):format(shown, note))
  end
  local unheeded = creation.unheeded(made)
  if unheeded then
    context:report(unheeded)
  end
  return 0
end

---The operand SIZE, if it is one; a message in qemu-img's words if not.
local function check_size(size)
  local bytes, message = number.read(size, "image size")
  return bytes and true, message
end

create.check_size = check_size

function create.run(context, values)
  local list, message = formats.join_options(values.options)
  if not list then
    return nil, message
  end
  local path, format = values.operands[1], values.format or "raw"
  if optlist.wants_help(list) then
    if not creation.formats[format] then
      return nil, ("Unknown file format '%s'"):format(text.escape(format))
    end
    context:write(creation.help(format, path ~= nil))
    return 0
  elseif not path then
    return context:misused("Expecting image file name")
  elseif values.operands[3] then
    return context:misused("Unexpected argument: " .. values.operands[3])
  elseif values.operands[2] then
    local fine, why = check_size(values.operands[2])
    if not fine then
      return nil, why
    end
  end
  local shown = text.escape(path)
  if not creation.formats[format] then
    return nil, ("%s: Unknown file format '%s'"):format(shown, text.escape(format))
  end
  local made
  made, message = read_options(values, format, list)
  if not made then
    return nil, ("%s: %s"):format(shown, message)
  end
  local o = creation.options(made)
  if made.values.backing_fmt and not o.backing_fmt then
    return nil, ("%s: Unknown backing file format '%s'"):format(shown, text.escape(made.values.backing_fmt))
  end
  o.backing_unsafe = values.backing_unsafe
  o.references = { "beside", table.unpack(context.allowed) }
  local plan
  plan, message = create_image.resolve(path, o)
  if not plan then
    return nil, ("%s: %s"):format(shown, message)
  end
  return create.make(context, values, made, plan, true)
end

return create
