-- SPDX-License-Identifier: MIT
-- `internalize`: the guest's data moves from an external data file into the image file.
local datafile = require("qcow2.datafile")
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")

local internalize = {
  name = "internalize",
  summary = "Move the data of an external data file into the image file",
  details = {
    "Every cluster that the data file has data for is copied into IMAGE; when all of it is on disk, IMAGE is switched "
      .. "to it with one write and no longer needs the data file, which is only read and stays as it is.",
    "`externalize` does the reverse.",
  },
  options = { options.progress, options.quiet },
  operands = { { name = "IMAGE", help = "the qcow2 image" } },
}

function internalize.run(context, values)
  local mode, why = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, why
  elseif #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  end
  local path = values.operands[1]
  local shown = progress.start(context, mode, 1)
  local done, message = datafile.internalize(path, {
    image = { format = "qcow2", references = images.references(context, path) },
    progress = function(at, total)
      shown:update(at, total)
    end,
  })
  shown:finish(done ~= nil)
  if not done then
    return nil, message
  end
  return 0
end

return internalize
