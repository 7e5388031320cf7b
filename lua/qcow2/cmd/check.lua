-- SPDX-License-Identifier: MIT
-- `check`: is an image sound, and can it be made so? Exit code 0: sound, 1: could not check, 2: corrupt, 3: space is
-- leaked and nothing else, 63: a format without checks.
local images = require("qcow2.cli.images")
local json = require("qcow2.cli.json")
local options = require("qcow2.cli.options")
local qcow2 = require("qcow2")
local size = require("qcow2.size")
local text = require("qcow2.cli.text")

local CORRUPT, LEAKED, NO_CHECKS = 2, 3, 63

-- QEMU's order of members, as they come out of its table.
local MEMBERS = "image-end-offset compressed-clusters total-clusters corruptions corruptions-fixed check-errors leaks "
  .. "leaks-fixed allocated-clusters filename format fragmented-clusters"

-- More lines than this are counted, not printed.
local MOST_LINES = 100000

local check = {
  name = "check",
  summary = "Check whether an image is sound, and repair it",
  details = {
    "Counts the references to every cluster and compares them with the image's own counts, and judges every table "
      .. "entry. What is wrong is said on the standard error output, one line a cluster or an entry.",
    "The exit code is 0 when the image is sound, 1 when it could not be checked, 2 when it is corrupt, 3 when it "
      .. "only wastes space, 63 when its format has no checks. After a repair it speaks of the repaired image.",
    "A repair never changes what the disk, its snapshots and its bitmaps show, and a crash at any moment leaves an "
      .. "image that can be repaired again. What cannot be repaired without losing something is left alone by "
      .. "'-r all': --repair-kind asks for it by its word; --repair-kind=help lists the words and what each loses.",
  },
  options = {
    options.format,
    options.image_opts,
    { short = "r", long = "repair", arg = "WHAT", help = "repair 'leaks' or 'all'" },
    {
      long = "repair-kind",
      ours = true,
      arg = "KIND",
      many = true,
      help = "repair this kind of problem too, whatever that loses; may be given again, 'help' lists them",
    },
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
    return ("OFLAG_COPIED L2 cluster: l1_index=%d l1_entry=%x refcount=%d"):format(finding.index, finding.entry,
      finding.refcount)
  end,
  ["copied-data"] = function(finding)
    return ("OFLAG_COPIED data cluster: l2_entry=%x refcount=%d"):format(finding.entry, finding.refcount)
  end,
}

local WORDS = { corruption = "ERROR", unreadable = "ERROR", leak = "Leaked", note = "Note:" }

-- A run of clusters is one line each.
local function say_run(say, word, finding, cluster_size)
  local first = finding.host_offset // cluster_size
  for cluster = first, first + finding.count - 1 do
    if not say(("%s cluster %d refcount=%s reference=%d"):format(word, cluster, size.unsigned(finding.refcount),
      finding.references)) then
      return
    end
  end
end

-- repaired: what is listed was put right.
local function say_findings(findings, omitted, cluster_size, quiet, repaired)
  local lines = 0
  local function say(line)
    lines = lines + 1
    if lines <= MOST_LINES then
      io.stderr:write(text.escape(line), "\n")
    end
    return lines <= MOST_LINES
  end
  for _, finding in ipairs(findings) do
    local word = repaired and "Repairing" or WORDS[finding.severity]
    if finding.references then
      say_run(say, word, finding, cluster_size)
    elseif LINES[finding.kind] then
      say(word .. " " .. LINES[finding.kind](finding))
    elseif finding.severity ~= "note" or not quiet then
      say(word .. " " .. tostring(finding))
    end
  end
  if omitted > 0 or lines > MOST_LINES then
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
    ["corruptions-fixed"] = unless_zero(report.corruptions_fixed or 0),
    ["check-errors"] = report.check_errors,
    leaks = unless_zero(report.leaks),
    ["leaks-fixed"] = unless_zero(report.leaks_fixed or 0),
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

local function no_checks(context)
  context:report("This image format does not support checks")
  return NO_CHECKS
end

-- The kinds of problems and what repairing them loses.
local function list_kinds(context)
  for _, problem in ipairs(qcow2.problems) do
    if problem.repairable then
      context:printf("%-22s %s\n%-22s repairing loses: %s%s\n", problem.kind, problem.meaning, "", problem.loss,
        problem.on_request and " (only on request)" or "")
    end
  end
  return 0
end

-- Options that make no sense, as a message.
local function misused(values)
  if values.repair and values.repair ~= "leaks" and values.repair ~= "all" then
    return ("--repair (-r) expects 'leaks' or 'all' not '%s'"):format(values.repair)
  end
  for _, kind in ipairs(values.repair_kind or {}) do
    local problem = type(kind) == "string" and qcow2.problems[kind]
    if not problem or not problem.repairable then
      return ("Unknown kind of problem '%s' (--repair-kind=help lists those that can be repaired)"):format(kind)
    end
  end
  if #values.operands ~= 1 then
    return "Expecting one image file name"
  end
end

-- Checks, or repairs. gives: the report; nil and a message.
local function report_on(image, values)
  if not (values.repair or values.repair_kind) then
    return image:check()
  end
  return image:repair({ leaks = values.repair ~= nil, all = values.repair == "all", kinds = values.repair_kind })
end

local function say_repaired(context, report, values, cluster_size)
  -- Counts are told twice, as they are found and as they are repaired: scripts know it so.
  local counts = {}
  for _, finding in ipairs(report.repaired) do
    counts[#counts + 1] = finding.references and finding
  end
  say_findings(counts, 0, cluster_size, values.quiet)
  say_findings(report.repaired, 0, cluster_size, values.quiet, true)
  if report.leaks_fixed + report.corruptions_fixed > 0 and values.output ~= "json" and not values.quiet then
    context:printf("The following inconsistencies were found and repaired:\n\n    %d leaked clusters\n"
      .. "    %d corruptions\n\nDouble checking the fixed image now...\n", report.leaks_fixed,
      report.corruptions_fixed)
  end
end

function check.run(context, values)
  if values.repair_kind and values.repair_kind[1] == "help" then
    return list_kinds(context)
  end
  local wrong = misused(values)
  if wrong then
    return context:misused(wrong)
  end
  if values.cache and not images.is_cache_mode(values.cache) then
    return nil, "Invalid source cache option: " .. values.cache
  end
  local repairs = values.repair or values.repair_kind
  if repairs and values.force_share then
    return nil, "A repair needs the image for itself: -U cannot be used with it"
  end
  local name = values.operands[1]
  -- Raw files are not opened for writing on a guess; they have nothing to repair.
  if repairs and not values.format and not values.image_opts and qcow2.probe(name) == "raw" then
    return no_checks(context)
  end
  local image <close>, message = images.open(context, name, {
    format = values.format,
    image_opts = values.image_opts,
    force_share = values.force_share,
    mode = repairs and "rw" or nil,
    damaged = true,
  })
  if not image then
    return nil, message
  elseif image.format ~= "qcow2" then
    return no_checks(context)
  end
  local report, why = report_on(image, values)
  if not report then
    images.close(image)
    return nil, "Check failed: " .. why
  end
  if report.repaired then
    say_repaired(context, report, values, image.cluster_size)
  end
  say_findings(report.findings, report.omitted, image.cluster_size, values.quiet)
  if values.output == "json" and not values.quiet then
    print_json(context, report, name, image.format)
  elseif not values.quiet then
    print_human(context, report)
  end
  local fine, unsaved = image:close()
  if not fine then
    return nil, unsaved
  end
  return verdict(context, report)
end

return check
