-- SPDX-License-Identifier: MIT
-- Options that several verbs share, each described once.
local options = {}

-- Cache modes, as -t and its like take them.
options.CACHE_MODES = { "none", "writeback", "writethrough", "directsync", "unsafe" }

options.help = { short = "h", long = "help", help = "print this help and exit" }

options.allow = {
  long = "allow",
  arg = "DIR",
  many = true,
  ours = true,
  help = "open files that images name under DIR too (may be given several times; QCOW2_ALLOW lists more)",
}

options.format = {
  short = "f",
  long = "format",
  arg = "FMT",
  choices = { "qcow2", "raw" },
  help = "format of FILE (default: found by its first bytes)",
}

options.image_opts = {
  long = "image-opts",
  help = "FILE is a list of options (driver=FMT,file.filename=PATH,...), not a name; not together with -f",
}

options.object = {
  long = "object",
  arg = "OBJDEF",
  many = true,
  help = "define an object, for instance secret,id=ID,file=PATH",
}

options.output = {
  long = "output",
  arg = "human|json",
  choices = { "human", "json" },
  help = "form of the output (default: human)",
}

options.force_share = {
  short = "U",
  long = "force-share",
  help = "open the image even when another process writes to it",
}

options.progress = {
  short = "p",
  long = "progress",
  arg = "json",
  optional = true,
  choices = { "json" },
  help = "show how far the work is; --progress=json writes one JSON object a line to stderr",
}

options.quiet = { short = "q", long = "quiet", help = "print nothing but errors" }

---A copy of a shared option with some fields changed.
---@param option table
---@param changes table
---@return table
function options.with(option, changes)
  local copy = {}
  for key, value in pairs(option) do
    copy[key] = value
  end
  for key, value in pairs(changes) do
    copy[key] = value
  end
  return copy
end

return options
