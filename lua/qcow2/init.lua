-- SPDX-License-Identifier: MIT
-- The library as users require it: opening images and the operations on whole disks.
local adopt = require("qcow2.adopt")
local check = require("qcow2.check")
local core = require("qcow2.core")
local create = require("qcow2.create")
local image = require("qcow2.image")
require("qcow2.change")
local job = require("qcow2.job")
local measure = require("qcow2.measure")
local size = require("qcow2.size")

local qcow2 = {
  _VERSION = core._VERSION,
  features = core.features,
  open = image.open,
  probe = image.probe,
  create = create.create,
  adopt = adopt.adopt,
  measure = measure.measure,
  problems = check.problems,
  size = size.parse,
  convert = require("qcow2.convert"),
  compare = require("qcow2.compare"),
  -- Class name -> table of methods, for those who list or extend them.
  _classes = { image = image.methods, bitmap = image.bitmap_methods, job = job.methods },
}

return qcow2
