-- SPDX-License-Identifier: MIT
-- `check`: is an image sound? Exit code 0: sound, 1: could not check, 2: corrupt, 3: space is leaked and nothing
-- else, 63: a format without checks.
local images = require("qcow2.cli.images")
local json = require("qcow2.cli.json")
local options = require("qcow2.cli.options")
local text = require("qcow2.cli.text")

local CORRUPT, LEAKED, NO_CHECKS = 2, 3, 63

-- QEMU's order of members, as they come out of its table.
local MEMBERS = "image-end-offset compressed-clusters total-clusters corruptions check-errors leaks "
  .. "allocated-clusters filename format fragmented-clusters"

-- More lines than this are counted, not printed.
local MOST_LINES = 100000

local check = {
  name = "check",
  summary = "Check whether an image is sound",
  details = {
    "Counts the references to every cluster and compares them with the image's own counts, and judges every table "
      .. "entry. What is wrong is said on the standard error output, one line a cluster or an entry.",
    "The exit code is 0 when the image is sound, 1 when it could not be checked, 2 when it is corrupt, 3 when it "
      .. "only wastes space, 63 when its format has no checks.",
  },
  options = {
    options.format,
    options.image_opts,
    { short = "r", long = "repair", arg = "WHAT", help = "repair 'leaks' or 'all'" },
    {
      short = "T",
      long = "cache",
      arg = "CACHE",
      help = "cache mode; taken for the sake of scripts, reading goes through the host's cache always",
    },
    options.force_share,
    options.output,
    options.quiet,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

-- The lines that scripts look for; everything else speaks in sentences.
local LINES = {
  ["copied-l2"] = function(finding)
    return ("ERROR OFLAG_COPIED L2 cluster: l1_index=%d l1_entry=%x refcount=%d"):format(finding.index, finding.entry,
      finding.refcount)
  end,
  ["copied-data"] = function(finding)
    return ("ERROR OFLAG_COPIED data cluster: l2_entry=%x refcount=%d"):format(finding.entry, finding.refcount)
  end,
}

local WORDS = { corruption = "ERROR ", unreadable = "ERROR ", leak = "Leaked ", note = "Note: " }

-- A run of clusters is one line each.
local function say_run(say, finding, cluster_size)
  local word = finding.kind == "leak" and "Leaked" or "ERROR"
  local first = finding.host_offset // cluster_size
  for cluster = first, first + finding.count - 1 do
    if not say(("%s cluster %d refcount=%d reference=%d"):format(word, cluster, finding.refcount,
      finding.references)) then
      return
    end
  end
end

local function say_findings(report, cluster_size, quiet)
  local lines = 0
  local function say(line)
    lines = lines + 1
    if lines <= MOST_LINES then
      io.stderr:write(text.escape(line), "\n")
    end
    return lines <= MOST_LINES
  end
  for _, finding in ipairs(report.findings) do
    if finding.references then
      say_run(say, finding, cluster_size)
    elseif LINES[finding.kind] then
      say(LINES[finding.kind](finding))
    elseif finding.severity ~= "note" or not quiet then
      say(WORDS[finding.severity] .. tostring(finding))
    end
  end
  if report.omitted > 0 or lines > MOST_LINES then
    io.stderr:write("There is more of this; the sums below count it.\n")
  end
end

local function percent(part, whole)
  return ("%.2f%%"):format(part * 100.0 / whole)
end

local function print_human(context, report)
  if report.corruptions + report.leaks + report.check_errors == 0 then
    context:write("No errors were found on the image.\n")
  end
  if report.corruptions > 0 then
    context:printf("\n%d errors were found on the image.\n"
      .. "Data may be corrupted, or further writes to the image may corrupt it.\n", report.corruptions)
  end
  if report.leaks > 0 then
    context:printf("\n%d leaked clusters were found on the image.\n"
      .. "This means waste of disk space, but no harm to data.\n", report.leaks)
  end
  if report.check_errors > 0 then
    context:printf("\n%d internal errors have occurred during the check.\n", report.check_errors)
  end
  if report.total_clusters > 0 and report.allocated_clusters > 0 then
    context:printf("%d/%d = %s allocated, %s fragmented, %s compressed clusters\n", report.allocated_clusters,
      report.total_clusters, percent(report.allocated_clusters, report.total_clusters),
      percent(report.fragmented_clusters, report.allocated_clusters),
      percent(report.compressed_clusters, report.allocated_clusters))
  end
  if report.image_end_offset > 0 then
    context:printf("Image end offset: %d\n", report.image_end_offset)
  end
end

local function print_json(context, report, name, format)
  local function unless_zero(number)
    return number ~= 0 and number or nil
  end
  context:write(json.pretty(json.object(MEMBERS, {
    ["image-end-offset"] = unless_zero(report.image_end_offset),
    ["total-clusters"] = unless_zero(report.total_clusters),
    corruptions = unless_zero(report.corruptions),
    ["check-errors"] = report.check_errors,
    leaks = unless_zero(report.leaks),
    ["fragmented-clusters"] = unless_zero(report.fragmented_clusters),
    ["allocated-clusters"] = unless_zero(report.allocated_clusters),
    filename = name,
    format = format,
    ["compressed-clusters"] = unless_zero(report.compressed_clusters),
  })), "\n")
end

local function verdict(context, report)
  if report.check_errors > 0 then
    context:report("Check failed")
    return 1
  elseif report.corruptions > 0 then
    return CORRUPT
  end
  return report.leaks > 0 and LEAKED or 0
end

function check.run(context, values)
  if values.repair and values.repair ~= "leaks" and values.repair ~= "all" then
    return context:misused("Unknown option value for -r (expecting 'leaks' or 'all'): " .. values.repair)
  end
  if #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  end
  if values.cache and not images.is_cache_mode(values.cache) then
    return nil, "Invalid source cache option: " .. values.cache
  end
  if values.repair then
    return nil, "Repairing is unsupported: this build has no repair of images"
  end
  local name = values.operands[1]
  local image <close>, message = images.open(context, name, {
    format = values.format,
    image_opts = values.image_opts,
    force_share = values.force_share,
    damaged = true,
  })
  if not image then
    return nil, message
  elseif image.format ~= "qcow2" then
    context:report("This image format does not support checks")
    return NO_CHECKS
  end
  local report, why = image:check()
  if not report then
    return nil, "Check failed: " .. why
  end
  say_findings(report, image.cluster_size, values.quiet)
  if values.output == "json" and not values.quiet then
    print_json(context, report, name, image.format)
  elseif not values.quiet then
    print_human(context, report)
  end
  return verdict(context, report)
end

return check
