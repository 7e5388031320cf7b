-- SPDX-License-Identifier: MIT
-- Disks whose sizes are no multiple of clusters, subclusters, or (as QEMU never makes them) sectors.

local reading = require "spec.support.reading"

local words = { describe = describe, it = it, lazy_setup = lazy_setup, lazy_teardown = lazy_teardown }

describe("An image of", function() reading.describe("sizes", words) end)

-- QEMU rounds such a size down to sectors, ours keeps every byte: the judge reads the same image with its size
-- rounded up.
describe("An image with", function() reading.describe("odd", words) end)
