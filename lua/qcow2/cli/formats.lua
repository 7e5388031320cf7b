-- SPDX-License-Identifier: MIT
-- What -O and -o may say before any format's own options are looked at.
local creation = require("qcow2.cli.creation")
local optlist = require("qcow2.cli.optlist")
local text = require("qcow2.cli.text")

local formats = {}

---Can this format be written? nil and a message when not.
---@param name string
---@return true?, string? message
function formats.find(name)
  if creation.formats[name] then
    return true
  end
  return nil, ("Unknown file format '%s'"):format(text.escape(name))
end

---Joins the lists of repeated -o; nil and a message when one does not join.
---@param lists string[]?
---@return string? joined, string? message
function formats.join_options(lists)
  for _, list in ipairs(lists or {}) do
    if not optlist.joinable(list) then
      return nil, "Invalid option list: " .. list
    end
  end
  return table.concat(lists or {}, ",")
end

return formats
