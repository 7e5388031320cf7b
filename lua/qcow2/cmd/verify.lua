-- SPDX-License-Identifier: MIT
-- `verify`: is an external data file, byte for byte, the disk that the guest sees? Exit code 0: it is, 1: could not
-- look, 2: it is not.
local images = require("qcow2.cli.images")
local json = require("qcow2.cli.json")
local options = require("qcow2.cli.options")
local progress = require("qcow2.cli.progress")
require("qcow2.datafile")

local DIFFERS = 2

local verify = {
  name = "verify",
  summary = "Compare an external data file with the disk that the guest sees",
  details = {
    "Lists every range where a reader of the data file alone sees something else than the guest, with the cause. In an "
      .. "image whose data file is to be raw there must be none.",
    "--to-data makes the data file what the guest reads: it gets zeros where the tables say zeros, and its length. "
      .. "--to-metadata makes the guest read what the data file holds: the entries of those ranges become plain data; "
      .. "what the guest read there before is lost. What neither can mend is told.",
    "The exit code is 0 when both are the same (by now), 2 when not, 1 when it could not be found out.",
  },
  options = {
    { long = "to-data", help = "write into the data file what the guest reads" },
    { long = "to-metadata", help = "let the guest read what the data file holds" },
    options.format,
    options.image_opts,
    options.output,
    options.progress,
    options.quiet,
    options.object,
  },
  operands = { { name = "IMAGE", help = "the qcow2 image" } },
}

local function print_human(context, report)
  for _, d in ipairs(report.divergences) do
    context:printf("0x%x+0x%x %s: %s\n", d.offset, d.length, d.cause, d.meaning)
  end
  if report.omitted > 0 then
    context:printf("... and %d more\n", report.omitted)
  end
  if report.found == 0 then
    context:write("The data file is the disk.\n")
  elseif report.same then
    context:printf("%d differences, all mended: the data file is the disk.\n", report.found)
  else
    context:printf("%d differences%s.%s\n", report.found,
      report.mended > 0 and (", %d of them mended"):format(report.mended) or "",
      report.raw and "" or " The image does not promise a raw data file.")
  end
end

local function print_json(context, values, report)
  local list = {}
  for index, d in ipairs(report.divergences) do
    list[index] = json.object("offset length cause", { offset = d.offset, length = d.length, cause = d.cause })
  end
  context:write(json.pretty(json.object("filename raw same found mended divergences", {
    filename = values.operands[1],
    raw = report.raw,
    same = report.same,
    found = report.found,
    mended = report.mended,
    divergences = list,
  })), "\n")
end

function verify.run(context, values)
  local mode, why = progress.mode(values.progress, values.quiet)
  if mode == false then
    return nil, why
  elseif #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  elseif values.to_data and values.to_metadata then
    return context:misused("--to-data and --to-metadata exclude one another")
  end
  local resync = values.to_data and "data" or values.to_metadata and "metadata" or nil
  local image <close>, message = images.open(context, values.operands[1],
    { format = values.format, image_opts = values.image_opts, mode = resync and "rw" or "r" })
  if not image then
    return nil, message
  end
  local shown = progress.start(context, mode, 1)
  local report
  report, message = images.close(image, image:verify({ resync = resync, progress = function(done, total)
    shown:update(done, total)
  end }))
  shown:finish(report ~= nil)
  if not report then
    return nil, message
  end
  if values.output == "json" then
    print_json(context, values, report)
  elseif not values.quiet then
    print_human(context, report)
  end
  return report.same and 0 or DIFFERS
end

return verify
