-- SPDX-License-Identifier: MIT
-- Images with every create option of qemu-img, in all of their values, read with ours.

local reading = require "spec.support.reading"

local words = { describe = describe, it = it, lazy_setup = lazy_setup, lazy_teardown = lazy_teardown }

describe("An image that qemu-img made with", function() reading.describe("options", words) end)
