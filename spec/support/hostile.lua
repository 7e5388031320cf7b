-- SPDX-License-Identifier: MIT
-- What the specs of hostile images share: make one, try everything on it, and see that the file is as it was.

local forge = require "spec.support.forge"
local sh = require "spec.support.sh"
local tmp = require "spec.support.tmp"

local hostile = {}

--- Writes an image. gives: its path and layout.
function hostile.image(description, name)
  local path = tmp.path(name or "image.qcow2")
  return path, forge.write(path, description)
end

--- All that reading offers, each part under pcall; what it says is thrown away. gives: nothing.
function hostile.exercise(path, options)
  local qcow2 = require "qcow2"
  local img <close> = qcow2.open(path, options)
  if not img then return end
  local function try(call, ...) return pcall(call, ...) end
  try(tostring, img)
  try(function() for _ in pairs(img) do end end) -- luacheck: ignore
  try(function()
    local count = 0
    for _ in img:extents() do
      count = count + 1
      if count > 200 then break end
    end
  end)
  for _, offset in ipairs { 0, 65536, img.size // 2, math.max(img.size - 512, 0) } do
    try(img.read, img, offset, 512)
    try(img.explain, img, offset)
  end
  try(function() return img.l1[0] and img.l1[0].l2 and tostring(img.l1[0].l2[0]) end)
  try(function() for i, s in ipairs(img.snapshots) do
    local view <close> = i < 5 and img:snapshot(s.id) or nil
    if view then view:read(0, 512) end
  end end)
  try(function() for _, b in ipairs(img.bitmaps) do
    img:bitmap(b.name):extents()()
  end end)
  for cluster = 0, 9 do try(img.refcount, img, cluster) end
  try(img.chain, img)
  try(function() return img.features, img.feature_names, img.extensions, img.preallocated end)
end

--- Opening fails. gives: message, kind.
function hostile.refused(description, options)
  local qcow2 = require "qcow2"
  local path = type(description) == "string" and description or hostile.image(description)
  local before = sh.slurp(path)
  local img, message, kind = qcow2.open(path, options)
  assert(img == nil, "the image was opened")
  assert(sh.slurp(path) == before, "the file was changed")
  return message, kind
end

--- Opens, calls action(img, layout), tries the rest, and sees that no byte of the file changed. gives: what the
-- action gave.
function hostile.opened(description, action, options)
  local qcow2 = require "qcow2"
  local path, layout = description, nil
  if type(description) ~= "string" then path, layout = hostile.image(description) end
  local before = sh.slurp(path)
  local img = assert(qcow2.open(path, options))
  local results = table.pack(action(img, layout, path))
  img:close()
  hostile.exercise(path, options)
  assert(sh.slurp(path) == before, "the file was changed")
  return table.unpack(results, 1, results.n)
end

--- The message that a raising call raises; fails when it does not.
function hostile.raised(call, ...)
  local fine, message = pcall(call, ...)
  assert(not fine, "nothing was raised")
  return message
end

return hostile
