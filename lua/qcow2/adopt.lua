-- SPDX-License-Identifier: MIT
-- Adopting: a qcow2 image around a raw disk that exists, which is only read while the image is made.
local core = require("qcow2.core")
local create = require("qcow2.create")
local references = require("qcow2.references")

local adopt = {}

---The name to store for the data file: what leads to it from the image's directory when it lies there or
---below, else its whole path.
---@param data_path string
---@param image_path string
---@return string? name, string? message, string? kind, integer? errno
function adopt.name(data_path, image_path)
  local real, message, kind, errno = core.realpath(data_path)
  if not real then
    return nil, message, kind, errno
  end
  local directory = references.directory(create.place(image_path))
  if real:sub(1, #directory) == directory then
    return real:sub(#directory + 1)
  end
  return real
end

---The options of qcow2.create that adopt `data_path`. The raw disk stays one at every moment unless
---data_file_raw is false.
---@param data_path string
---@param image_path string
---@param given table?
function adopt.options(data_path, image_path, given)
  local o = {}
  for key, value in pairs(given or {}) do
    o[key] = value
  end
  for _, key in ipairs({ "data_file", "keep_data_file", "backing_file", "format" }) do
    if o[key] ~= nil then
      error(("option '%s' has no place here: the data file is what is adopted"):format(key), 3)
    end
  end
  local name, message, kind, errno = adopt.name(data_path, image_path)
  if not name then
    return nil, message, kind, errno
  end
  o.data_file, o.keep_data_file = name, true
  if o.data_file_raw == nil then
    o.data_file_raw = true
  end
  return o
end

---Makes an image around a raw disk. gives: true, or nil, message, kind, errno.
---@param data_path string
---@param image_path string
---@param given qcow2.create_options?
function adopt.adopt(data_path, image_path, given)
  if type(data_path) ~= "string" or type(image_path) ~= "string" then
    error("the raw disk and the image are given by their paths", 2)
  end
  local o, message, kind, errno = adopt.options(data_path, image_path, given)
  if not o then
    return nil, message, kind, errno
  end
  return create.create(image_path, o)
end

return adopt
