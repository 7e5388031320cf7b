-- SPDX-License-Identifier: MIT
-- `snapshot`: lists, takes, applies and deletes internal snapshots.
local images = require("qcow2.cli.images")
local listing = require("qcow2.listing")
local options = require("qcow2.cli.options")
local text = require("qcow2.cli.text")

local ACTIONS = { "list", "apply", "create", "delete" }

local snapshot = {
  name = "snapshot",
  summary = "List, take, apply and delete internal snapshots",
  details = {
    "Without -l, -a, -c and -d the snapshots are listed. Only one of them can be given.",
    "-a takes SNAPSHOT for an id before it takes it for a name; -d takes names only.",
  },
  options = {
    options.format,
    options.image_opts,
    { short = "l", long = "list", many = true, help = "list the snapshots" },
    {
      short = "a",
      long = "apply",
      arg = "SNAPSHOT",
      many = true,
      help = "let the disk be what it was then; what it is now is lost",
    },
    { short = "c", long = "create", arg = "SNAPSHOT", many = true, help = "take a snapshot of this name" },
    { short = "d", long = "delete", arg = "SNAPSHOT", many = true, help = "delete a snapshot" },
    options.force_share,
    options.quiet,
    options.object,
  },
  operands = { { name = "FILE", help = "the image" } },
}

local function list(context, image)
  local snapshots, message = {}, nil
  if image.format == "qcow2" then
    snapshots, message = images.table_of(image, "snapshots")
  end
  if not snapshots then
    return nil, message
  elseif #snapshots > 0 then
    context:write("Snapshot list:\n", text.snapshot_heads(), "\n")
    listing.records(image, "snapshot", "", false, function(rows) context:write(rows) end)
  end
  return true
end

-- By its name alone, as qemu-img does it: a script that is wrong about a name must not delete what has it for an id.
local function find_to_delete(image, wanted)
  local snapshots, message = {}, nil
  if image.format == "qcow2" then
    snapshots, message = images.table_of(image, "snapshots")
  end
  for _, one in ipairs(snapshots or {}) do
    if one.name == wanted then
      return one.id
    end
  end
  return nil, message or "snapshot not found"
end

local function act(image, action, name)
  local shown = text.escape(name)
  local fine, message, kind
  if action == "create" then
    if image.format ~= "qcow2" then
      return nil, ("Could not create snapshot '%s': Operation not supported"):format(shown)
    end
    fine, message = image:snapshot_create(name)
    return fine, message and ("Could not create snapshot '%s': %s"):format(shown, message)
  elseif action == "apply" then
    if image.format ~= "qcow2" then
      return nil, ("Could not apply snapshot '%s': Block driver does not support snapshots"):format(shown)
    end
    fine, message, kind = image:snapshot_apply(name)
    if not fine and kind == "missing" then
      message = "Failed to load snapshot: No such file or directory"
    end
    return fine, message and ("Could not apply snapshot '%s': %s"):format(shown, message)
  end
  local id
  id, message = find_to_delete(image, name)
  if id then
    fine, message = image:snapshot_delete(id)
  end
  return fine, not fine and ("Could not delete snapshot '%s': %s"):format(shown, message) or nil
end

function snapshot.run(context, values)
  local action, name
  for _, word in ipairs(ACTIONS) do
    local given = values[word]
    if given and (action or #given > 1) then
      return context:misused("Cannot mix '-l', '-a', '-c', '-d'")
    elseif given then
      action, name = word, given[1]
    end
  end
  if #values.operands ~= 1 then
    return context:misused("Expecting one image file name")
  end
  local file = values.operands[1]
  local mode = (action or "list") ~= "list" and "rw" or "r"
  if mode == "rw" and values.force_share then
    return nil, images.could_not_open(file, "force-share=on can only be used with read-only images")
  end
  local image, message = images.open(context, file, {
    format = values.format,
    image_opts = values.image_opts,
    force_share = values.force_share,
    mode = mode,
  })
  if not image then
    return nil, message
  end
  local fine
  if mode == "r" then
    fine, message = list(context, image)
  else
    fine, message = act(image, action, name)
  end
  fine, message = images.close(image, fine, message)
  if not fine then
    return nil, message
  end
  return 0
end

return snapshot
