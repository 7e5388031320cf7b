-- SPDX-License-Identifier: MIT
-- Files that an image names: where a name leads, and whether the policy lets us go there.
--
-- References are facts, not commands: an image from a stranger may name /etc/passwd as its data file. The
-- core never opens them; this file decides, and its caller opens.
local core = require("qcow2.core")

local references = {}

---The directory part of a path, with its slash; "" for a bare name.
function references.directory(path)
  return path:match("^(.*/)") or ""
end

---Where a stored name leads: relative names count from the image's directory, for data files too.
---@param image_path string
---@param name string
function references.resolve(image_path, name)
  if name:sub(1, 1) == "/" then
    return name
  end
  return references.directory(image_path) .. name
end

---Shows a name that came from a file: control characters, backslashes and broken UTF-8 as \xNN.
function references.escape(name)
  local valid = utf8.len(name)
  return (name:gsub(valid and "[%c\127\\]" or "[%c\127-\255\\]", function(c)
    return ("\\x%02x"):format(c:byte())
  end))
end

-- Is the file at `real` in that directory or below? An empty name is no directory: a script's variable that is not
-- set must not allow all of the current one.
local function inside(real, directory)
  local root = core.realpath(directory)
  if not root then
    return false
  end
  return root == "/" or real == root or real:sub(1, #root + 1) == root .. "/"
end

local function beside(real, image_path)
  local directory = references.directory(image_path)
  return inside(real, directory == "" and "." or directory)
end

local words = { backing = "Backing file", data_file = "Data file" }

---May `name`, found in the image at `image_path` in the given role, be opened? gives the path to open, or
---nil, message, kind, errno.
---@param policy qcow2.references
---@param image_path string
---@param name string
---@param role "backing"|"data_file"
function references.allow(policy, image_path, name, role)
  local what = words[role]
  local function refuse(why, kind)
    return nil, ("%s '%s' of '%s' %s"):format(what, references.escape(name), references.escape(image_path), why),
      kind or "refused"
  end
  if name == "" then
    return refuse("has an empty name")
  end
  if name:find("\0", 1, true) then
    return refuse("has a NUL in its name")
  end
  local path = references.resolve(image_path, name)
  if policy == "none" then
    return refuse("is not opened: references are off (references = \"beside\", --allow DIR)")
  end
  local real, message, kind, errno = core.realpath(path)
  if not real then
    if kind == "missing" then
      local hint = ""
      if path ~= name and core.realpath(name) then
        hint = " (a file of that name is in the current directory, but names count from the image's directory)"
      end
      return nil, ("Could not open '%s': No such file or directory%s"):format(references.escape(path), hint),
        kind, errno
    end
    return nil, ("Could not open '%s': %s"):format(references.escape(path), message:sub(#path + 3)), kind, errno
  end
  local allowed
  if policy == "any" then
    allowed = true
  elseif policy == nil or policy == "beside" then
    allowed = beside(real, image_path)
  elseif type(policy) == "function" then
    allowed = policy(real, role)
  else
    for _, directory in ipairs(policy) do
      local there
      if directory == "beside" then
        there = beside(real, image_path)
      else
        there = inside(real, directory)
      end
      allowed = allowed or there
    end
  end
  if not allowed then
    return refuse(("leads to '%s', where references are not allowed; allow it with references = {...} (--allow %s)")
      :format(references.escape(real), references.escape(references.directory(real))))
  end
  return path
end

return references
