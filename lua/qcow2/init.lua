-- SPDX-License-Identifier: MIT
-- The library as users require it.
local core = require("qcow2.core")

return { _VERSION = core._VERSION }
