-- SPDX-License-Identifier: MIT
-- Before any spec: stores have the methods power and fault (module.c).
require "qcow2_test_stores"
