-- SPDX-License-Identifier: MIT
-- `externalize`: the guest's data moves out of an image into an external data file.
local datafile = require("qcow2.datafile")
local images = require("qcow2.cli.images")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")

local externalize = {
  name = "externalize",
  summary = "Move the guest's data into an external data file",
  details = {
    "DATA_FILE must not exist; it is made as long as the disk and gets every byte that IMAGE itself holds, at its "
      .. "guest offset. When all of it is on disk, IMAGE is switched to it with one write; then the image file becomes "
      .. "as short as its metadata. What IMAGE has from a backing file stays there.",
    "With --raw DATA_FILE alone is the disk from then on: a raw disk that other programs can read at any moment. Then "
      .. "IMAGE must have no backing file.",
    "An image with internal snapshots, or of version 2, is refused. `internalize` does the reverse.",
  },
  options = {
    { long = "raw", help = "the data file is a raw disk at every moment" },
    options.progress,
    options.quiet,
  },
  operands = {
    { name = "IMAGE", help = "the qcow2 image" },
    { name = "DATA_FILE", help = "the file to make" },
  },
}

function externalize.run(context, values)
  local mode, why = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, why
  elseif #values.operands ~= 2 then
    return context:misused("Expecting an image and the name of a data file")
  end
  local path, data_path = table.unpack(values.operands)
  local shown = progress.start(context, mode, 1)
  local done, message = datafile.externalize(path, data_path, {
    raw = values.raw,
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

return externalize
