-- SPDX-License-Identifier: MIT
-- Sparse images that are sound and whose tables lie in holes: thousands of L2 tables, snapshots with L1 tables of
-- 32 MiB.

local hollow = {}

local COPIED <const> = 1 << 63
local SNAPSHOT_L1 <const> = 32 << 20

--- Makes an image of version 3. o: cluster_bits, tables (L2 tables, all in holes), snapshots (each with an L1 table of
-- 32 MiB in a hole).
function hollow.write(path, o)
  local bits, tables, snapshots = o.cluster_bits, o.tables, o.snapshots or 0
  local cluster = 1 << bits
  local function clusters_of(bytes) return (bytes + cluster - 1) // cluster end
  local l1_clusters, per_block = clusters_of(tables * 8), cluster // 2
  local list_clusters = snapshots > 0 and clusters_of(snapshots * 80) or 0
  local rest = l1_clusters + tables + list_clusters + snapshots * (SNAPSHOT_L1 // cluster)
  local blocks = rest // (per_block - 2) + 2
  local reftable_clusters = clusters_of(blocks * 8)
  local l1 = 1 + reftable_clusters + blocks
  local l2, list = l1 + l1_clusters, l1 + l1_clusters + tables
  local own, total = list + list_clusters, l1 + rest
  local file <close> = assert(io.open(path, "w+b"))
  local function put(offset, bytes)
    file:seek("set", offset)
    file:write(bytes)
  end
  local size = tables * (cluster // 8) * cluster
  put(0, string.pack(">I4I4I8I4I4I8I4I4I8I8I4I4I8I8I8I8I4I4", 0x514649fb, 3, 0, 0, bits, size, 0, tables,
    l1 * cluster, cluster, reftable_clusters, snapshots, snapshots > 0 and list * cluster or 0, 0, 0, 0, 4, 104))
  for i = 0, blocks - 1 do
    put(cluster + i * 8, string.pack(">I8", (1 + reftable_clusters + i) * cluster))
    local count = math.min(per_block, math.max(0, total - i * per_block))
    put((1 + reftable_clusters + i) * cluster, ("\0\1"):rep(count))
  end
  local entries = {}
  for i = 0, tables - 1 do entries[i + 1] = string.pack(">i8", (l2 + i) * cluster | COPIED) end
  put(l1 * cluster, table.concat(entries))
  local records = {}
  for i = 1, snapshots do
    local id = tostring(i)
    local record = string.pack(">I8I4I2I2I4I4I8I4I4I8I8I8", own * cluster + (i - 1) * SNAPSHOT_L1, SNAPSHOT_L1 // 8,
      #id, 1, 0, 0, 0, 0, 24, 0, size, -1 & 0x7fffffffffffffff) .. id .. "s"
    records[i] = record .. ("\0"):rep(-#record % 8)
  end
  put(list * cluster, table.concat(records))
  put(total * cluster - 1, "\0")
end

return hollow
