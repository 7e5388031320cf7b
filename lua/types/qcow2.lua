---@meta qcow2
-- SPDX-License-Identifier: MIT
-- LuaCATS annotations: the reference of the Lua API. Editors complete from this file; a lint proves
-- that it and the module name the same things.
--
-- Units: every offset and length is in bytes unless the name says clusters or sectors. Sizes may be
-- given as integers or as strings with a suffix ("64K", "1.5G"; powers of 1024).
--
-- Failure: what the world does (files, images, hosts) returns `nil, message, kind, errno`; what the
-- manual forbids (wrong type, unknown option, closed image) raises. Iterators raise.

---@alias qcow2.kind
---| "io" | "nospace" | "missing" | "denied" | "locked" | "readonly" | "format" | "corrupt"
---| "unsupported" | "range" | "conflict" | "key" | "nomem" | "refused" | "exists" | "bug"

---Bytes as an integer, or text like "64K", "20G", "1.5M".
---@alias qcow2.size integer|string

---Which files named inside an image may be opened: in the image's directory or below ("beside", the
---default), none, any, those under the listed directories, or what a function answers true for
---(it receives the resolved path and "backing" or "data_file").
---@alias qcow2.references "beside"|"none"|"any"|string[]|fun(path:string, role:string):boolean

---@class qcow2.open_options
---@field mode? "r"|"rw"                 default "r"
---@field format? "qcow2"|"raw"          default: probed; a probed raw file is opened read-only
---@field references? qcow2.references   default "beside"
---@field data_file? string|false        path of the external data file instead of the stored name; false: attach none
---@field backing? string|qcow2.image|false  backing file instead of the stored name; false: attach none
---@field backing_format? "qcow2"|"raw"
---@field snapshot? string               open the disk as this internal snapshot (id or name) has it, read-only
---@field force_share? boolean           take no locks, refuse nobody (read-only)
---@field damaged? boolean               open it even when its tables lie outside the file or nowhere: for `img:check()` and `img:repair()`

---@class qcow2
---@field _VERSION string
---@field features table<string, string|false>  optional parts of this build: deflate, zstd, crypto -> library and version, or false
---@field problems table<string|integer, qcow2.problem>  what a check can find: by kind, and in order
local qcow2 = {}

---Opens an image. Referenced files (data file, backing chain) are found when they are first needed, by
---policy; `img:attach()` does it at once.
---@param path string
---@param options? qcow2.open_options
---@return qcow2.image? img
---@return string? message
---@return qcow2.kind? kind
---@return integer? errno
function qcow2.open(path, options) end

---The format by the first bytes, and the last: "qcow2", "raw", "unfinished" for what is left of an image whose making
---was cut off, or the name of a format that is not read and is no raw disk.
---@param path string
---@return "qcow2"|"raw"|"unfinished"|"vmdk"|"vdi"|"vhdx"|"vpc"|"qed"|"parallels"|"qcow"|"luks"|"dmg"|"bochs"|"cloop"|nil format
---@return string? message
---@return qcow2.kind? kind
function qcow2.probe(path) end

---Parses a size as qemu-img does ("64K", "1.5G"): bytes, or nil and a message.
---@param text qcow2.size
---@return integer? bytes
---@return string? message
function qcow2.size(text) end

---@class qcow2.create_options
---@field format? "qcow2"|"raw"            default "qcow2"; "raw" takes size, preallocation, nocow, overwrite only
---@field size? qcow2.size                 of the disk, rounded up to 512; default: the backing file's, or the kept data file's
---@field compat? "1.1"|"v3"|"0.10"|"v2"   default "1.1"
---@field cluster_size? qcow2.size         512 to 2M, default 64K
---@field refcount_bits? integer           1, 2, 4, ... 64; default 16
---@field lazy_refcounts? boolean
---@field extended_l2? boolean             subclusters; clusters of 16K or more
---@field compression_type? "zlib"|"zstd"  default "zlib"
---@field preallocation? "off"|"metadata"|"falloc"|"full"  default "off"
---@field backing_file? string             stored as given; a relative name counts from the image's directory
---@field backing_fmt? "qcow2"|"raw"       required with backing_file
---@field backing_unsafe? boolean          do not open the backing file
---@field data_file? string                external data file: stored as given; a relative name counts from the image's directory
---@field data_file_raw? boolean           that file alone is the disk at every moment
---@field keep_data_file? boolean          it exists, and what it holds becomes the disk's contents; it is only read
---@field keep_holes? boolean              with keep_data_file: map its holes like data (default: they become zero clusters)
---@field overwrite? boolean               an existing image file, and a data file that holds data, may be overwritten
---@field nocow? boolean                   no copy-on-write on hosts that know it
---@field encryption? "aes"|"luks"         answers "unsupported"
---@field references? qcow2.references     policy for what the backing file names

---Makes an image, to be opened by `qcow2.open`. Nothing is made or changed when the options contradict
---each other or something that exists would be lost ("exists"). When it fails later, files that this call made are
---removed; one that was to be overwritten stays, without its old contents.
---@param path string
---@param options qcow2.create_options
---@return true? made
---@return string? message
---@return qcow2.kind? kind
---@return integer? errno
function qcow2.create(path, options) end

---Makes an image around a raw disk (a file or a block device), which is only read meanwhile: the image names it
---as its external data file. data_file_raw is true unless given. The file's length must be a multiple of 512.
---@param data_path string
---@param path string      of the image
---@param options? qcow2.create_options
---@return true? made
---@return string? message
---@return qcow2.kind? kind
---@return integer? errno
function qcow2.adopt(data_path, path, options) end

---@class qcow2.measure_options
---@field size? qcow2.size                 of the disk, when there is no source
---@field format? "qcow2"|"raw"            of the new image, default "qcow2"
---@field source? qcow2.open_options       how to open a source given as a path
---@field compat? "1.1"|"v3"|"0.10"|"v2"
---@field cluster_size? qcow2.size
---@field refcount_bits? integer
---@field extended_l2? boolean
---@field preallocation? "off"|"metadata"|"falloc"|"full"
---@field backing_file? string
---@field data_file? string                with one, required and fully_allocated are the image's alone
---@field data_file_raw? boolean

---@class qcow2.measurement
---@field required integer                 bytes for what the source holds now
---@field fully_allocated integer          bytes for anything that may be written
---@field bitmaps? integer                 bytes for the source's bitmaps
---@field data_required? integer           the same for the external data file
---@field data_fully_allocated? integer

---How large a new image would be: with the contents of `source`, or empty with `options.size`.
---@param source string|qcow2.image|nil
---@param options? qcow2.measure_options
---@return qcow2.measurement? figures
---@return string? message
---@return qcow2.kind? kind
---@return integer? errno
function qcow2.measure(source, options) end

---@class qcow2.copy_options
---@field format? "raw"|"qcow2"          of the target; default: qcow2 when its name ends in .qcow2, when it is an open
---                                      image, or when an option that only qcow2 has is given; else raw
---@field source? qcow2.open_options     how to open sources given as paths
---@field create? qcow2.create_options   how to make the target: all but size; raw: preallocation and nocow
---@field target_exists? boolean         write into an existing target (qemu-img's -n)
---@field target? qcow2.open_options     how to open an existing qcow2 target
---@field target_is_zero? boolean        with target_exists: all of it reads as zeros already
---@field target_backing? boolean        with target_exists: what the source does not have itself is left alone, as in
---                                      a new target with a backing file
---@field overwrite? boolean             a target that is there is emptied first; otherwise it is refused (`exists`)
---@field sparse_size? qcow2.size        -S: smallest run of zeros left out of the target; default "4K"; 0: none, write all
---@field salvage? boolean               unreadable source clusters become zeros
---@field strict? boolean                an image file that ends before its own data is an error (`corrupt`); default: it reads as zeros
---@field threads? integer               default: one per online CPU
---@field sync? boolean                  the copy is on stable storage when the job is done; default false
---@field compress? boolean              qcow2: compressed clusters
---@field bitmaps? boolean               qcow2: the persistent bitmaps of the one source too
---@field skip_broken_bitmaps? boolean   leave out bitmaps that were not stored completely; else they are refused
---@field length? qcow2.size             copy only so many bytes of the one source, ...
---@field start? qcow2.size              ... from here on (default 0)
---@field rate? qcow2.size               bytes of data a second at most; 0: no limit

---Copies one disk, or several one behind the other, into a new file. A new qcow2 image looks like no image until the
---job is done. With target_exists the target may be an open image (mode "rw"), which the job does not close.
---@param source string|qcow2.image|(string|qcow2.image)[]
---@param target string|qcow2.image
---@param options? qcow2.copy_options
---@return qcow2.job? job
---@return string? message
---@return qcow2.kind? kind
function qcow2.convert(source, target, options) end

---@class qcow2.compare_result
---@field same boolean
---@field offset? integer     the 512-byte sector that differs first, or where the allocation does
---@field reason? "content"|"size"|"allocation"

---Compares two disks as the guest sees them.
---@param a string|qcow2.image
---@param b string|qcow2.image
---@param options? {strict?:boolean, threads?:integer, source?:qcow2.open_options, progress?:fun(done:integer,total:integer)}
---@return qcow2.compare_result? result
---@return string? message
---@return qcow2.kind? kind
function qcow2.compare(a, b, options) end

---@class qcow2.commit_options
---@field base? string                   the file of the chain to move into, as stored or as a path; default: the backing file; implies keep
---@field keep? boolean                  leave the image as it is; default: it is emptied
---@field rate? qcow2.size               bytes a second at most
---@field references? qcow2.references   policy for the chain's names; default: that of the image
---@field source? qcow2.open_options     how to open a disk given as a path
---@field threads? integer

---Moves what an image has beyond its backing file into the backing file, which grows when it is shorter. What the
---image shows never changes. With `base` the images between lose their validity.
---@param disk string|qcow2.image   an open image must be mode "rw" unless `keep`, its backing chain not attached yet
---@param options? qcow2.commit_options
---@return qcow2.job? job
---@return string? message
---@return qcow2.kind? kind
function qcow2.commit(disk, options) end

---@class qcow2.externalize_options
---@field raw? boolean                    the data file alone is the disk from then on; needs an image without backing file
---@field threads? integer
---@field image? qcow2.open_options       how to open the image
---@field progress? fun(done: integer, total: integer)

---Moves the guest's data out of an image into an external data file, which must not exist. When all of it is on disk
---the image is switched to it by one write. Images with snapshots and images of version 2 are refused.
---@param path string
---@param data_path string
---@param options? qcow2.externalize_options
---@return true?, string?, qcow2.kind?, integer?
function qcow2.externalize(path, data_path, options) end

---Moves the data of an image's external data file into the image file, by one switch; the data file is only read.
---@param path string
---@param options? {image?:qcow2.open_options, progress?:fun(done: integer, total: integer)}
---@return true?, string?, qcow2.kind?, integer?
function qcow2.internalize(path, options) end

---@class qcow2.rebase_options
---@field backing_file? string           stored as given, counts from the image's directory; nil: none
---@field backing_fmt? "qcow2"|"raw"     required with backing_file
---@field compress? boolean              what is copied into the image
---@field force_share? boolean           open the new backing file even when it is written to
---@field references? qcow2.references   policy for what the new backing file names
---@field source? qcow2.open_options     how to open a disk given as a path
---@field threads? integer

---Puts another backing file below an image. What the image shows never changes: where old and new differ, the old
---is copied into the image first. `image:set_backing` changes the name alone.
---@param disk string|qcow2.image   an open image must be mode "rw"
---@param options? qcow2.rebase_options
---@return qcow2.job? job
---@return string? message
---@return qcow2.kind? kind
function qcow2.rebase(disk, options) end

---A long-running operation, done in steps.
---@class qcow2.job
---@field done boolean
---@field notes? string[]     of a conversion: what could not be had, and is not missed much
---@field lost_bytes? integer  once it has ended: what `salvage` could not read
---@field missing_bytes? integer  once a copy has ended: data behind the end of its image file, which became zeros,
---@field missing_from? integer   ... from here on the disk
---@field missing_to? integer     ... to here
local job = {}

---Iterates `done_bytes, total_bytes` until the job is finished; raises on failure.
---@return fun():integer?, integer?
function job:steps() end

---Runs the rest at once. On failure nil, message, kind, errno.
---@return true?, string?, qcow2.kind?, integer?
function job:run() end

---Stops; a target that this job made is removed.
function job:cancel() end

---One run of the guest's disk that is backed in one way.
---@class qcow2.extent
---@field offset integer        guest offset
---@field length integer
---@field kind "data"|"zero"|"unallocated"|"compressed"
---@field depth integer         0: this image, 1: its backing file, ...
---@field present boolean       allocated in some layer of the chain
---@field hole? boolean         kind "zero" because the host has a hole where the tables say data
---@field copied? boolean       belongs to no snapshot
---@field file? string          name of the file that holds it
---@field host_offset? integer  where in that file (data; zero clusters with space kept; compressed: the stream)
---@field host_length? integer  compressed: bytes of the stream's sectors

---An open disk image. Every property is read-only.
---@class qcow2.image
---@field path string
---@field format "qcow2"|"raw"
---@field mode "r"|"rw"
---@field size integer           bytes of the virtual disk
---@field version? integer       2 or 3 (qcow2)
---@field cluster_size? integer
---@field subcluster_size? integer
---@field refcount_bits? integer
---@field compression_type? "zlib"|"zstd"
---@field extended_l2? boolean
---@field lazy_refcounts? boolean
---@field dirty? boolean
---@field corrupt? boolean
---@field encryption? "aes"|"luks"  nil when not encrypted
---@field data_file? string      stored name of the external data file
---@field data_file_raw? boolean
---@field external_data? boolean  incompatible feature bit 2
---@field backing_file? string   stored name
---@field backing_format? string stored format
---@field backing_path? string   where the stored backing name leads (nothing is opened)
---@field data_file_path? string where the external data file is looked for
---@field data_file_length? integer bytes of that file, if it is a regular one that may be looked at
---@field data_path? string      the external data file that was opened, once it was needed
---@field preallocated boolean   the file occupies clearly less than its metadata says is allocated
---@field disk_size integer      bytes the host spends on the file
---@field file_length integer
---@field header qcow2.header
---@field extensions qcow2.extension[]
---@field feature_names qcow2.feature_name[]
---@field features qcow2.feature_bit[]
---@field l1 qcow2.l1_table
---@field refcount_table qcow2.refcount_table
---@field snapshots qcow2.snapshot[]
---@field bitmaps qcow2.bitmap_info[]
local image = {}

---Reads guest bytes. `offset + length` must lie inside the disk.
---@param offset integer
---@param length integer
---@return string? bytes
---@return string? message
---@return qcow2.kind? kind
---@return integer? errno
function image:read(offset, length) end

---Iterates the disk as maximal runs through the whole chain; with `layer` this image only ("unallocated" then
---stands for "ask the backing file"). The host is asked for holes in raw and external data files always, in
---qcow2 files when `holes` is true (default: when the file was preallocated).
---@param options? {start?:qcow2.size, length?:qcow2.size, layer?:boolean, holes?:boolean}
---@return fun():qcow2.extent?
function image:extents(options) end

---How one guest byte is found: header -> L1 -> L2 -> subcluster -> host byte or backing file. Its
---tostring is the explanation; the fields are the raw values.
---@param offset qcow2.size
---@return qcow2.explanation? path, string? message, qcow2.kind? kind
function image:explain(offset) end

---The chain from this image down: path, format, size, backing and data file of each; a file that cannot be
---opened has `missing` = the reason and ends the list.
---@return table[] chain
function image:chain() end

---Opens and attaches every referenced file the policy allows; nil and the reason for the first that fails.
---@return true?, string?, qcow2.kind?
function image:attach() end

---Reference count of a host cluster (index, not offset).
---@param cluster integer
---@return integer? count, string? message, qcow2.kind? kind
function image:refcount(cluster) end

---The disk as an internal snapshot (id or name) has it: a read-only image. Its methods answer `missing` once the snapshot
---is deleted or the image repaired.
---@param id_or_name string
---@return qcow2.image? snapshot, string? message, qcow2.kind? kind
function image:snapshot(id_or_name) end

---A persistent bitmap by name.
---@param name string
---@return qcow2.bitmap? bitmap, string? message, qcow2.kind? kind
function image:bitmap(name) end

---Checks the image: counts the references to every cluster from all structures, compares them with the refcount
---blocks, judges every entry. Reads only. An external data file is looked at when the policy allows it.
---`most`: findings kept (default 50,000); all are counted.
---@param options? {most?:integer, threads?:integer, progress?:fun(done:integer, total:integer)}
---@return qcow2.check_report? report, string? message, qcow2.kind? kind, integer? errno
function image:check(options) end

---Repairs the image and checks it again. It has to be open with mode = "rw"; a damaged one with damaged = true too,
---then it can be repaired and nothing else. `leaks`: what wastes space. `all`: everything that can be repaired
---without a loss. `kinds`: these, whatever that loses (`qcow2.problems[kind].loss`). Counts and flags follow whatever
---is repaired. The disk, its snapshots and its bitmaps show the same at every instant, and a crash leaves an image
---that can be repaired again.
---@param options {leaks?:boolean, all?:boolean, kinds?:string[], most?:integer, threads?:integer, progress?:fun(done:integer, total:integer)}
---@return qcow2.repair_report? report, string? message, qcow2.kind? kind, integer? errno
function image:repair(options) end

---Stores another backing name and format by one switch of the header; nil: none. Nothing is opened or compared.
---@param name? string
---@param format? "qcow2"|"raw"   required with a name
---@return true?, string?, qcow2.kind?, integer?
function image:set_backing(name, format) end

---Writes guest bytes. needs mode "rw". On stable storage after flush() or close().
---@param offset integer
---@param bytes string
---@return true?, string?, qcow2.kind?, integer?
function image:write(offset, bytes) end

---Writes one whole cluster (or up to the disk's end) compressed; what does not shrink is written plainly.
---@param offset integer   a multiple of cluster_size
---@param bytes string
---@return true?, string?, qcow2.kind?, integer?
function image:write_compressed(offset, bytes) end

---Makes the range read as zeros; `unmap` gives whole clusters back to the host.
---@param offset integer
---@param length integer
---@param options? {unmap?:boolean}
---@return true?, string?, qcow2.kind?, integer?
function image:zero(offset, length, options) end

---Lets go of the whole clusters in the range; they read as zeros afterwards.
---@param offset integer
---@param length integer
---@return true?, string?, qcow2.kind?, integer?
function image:discard(offset, length) end

---Everything written is on stable storage when this answers true.
---@return true?, string?, qcow2.kind?, integer?
function image:flush() end

---Grows the disk (new space reads as zeros, and takes its space at once as `preallocation` says), or with `shrink`
---cuts it off.
---@param size qcow2.size
---@param options? {shrink?:boolean, preallocation?:"off"|"metadata"|"falloc"|"full"}
---@return true?, string?, qcow2.kind?, integer?
function image:resize(size, options) end

---Takes an internal snapshot of the disk. After a crash it is there whole or not at all.
---@param name string
---@return true?, string?, qcow2.kind?, integer?
function image:snapshot_create(name) end

---The disk becomes what the snapshot (id or name) has; what it had is lost.
---@param id_or_name string
---@return true?, string?, qcow2.kind?, integer?
function image:snapshot_apply(id_or_name) end

---@param id_or_name string
---@return true?, string?, qcow2.kind?, integer?
function image:snapshot_delete(id_or_name) end

---@param id_or_name string
---@param name string
---@return true?, string?, qcow2.kind?, integer?
function image:snapshot_rename(id_or_name, name) end

---Adds a persistent bitmap, enabled (it follows every write) unless `disabled`.
---@param name string
---@param options? {granularity?:qcow2.size, disabled?:boolean}
---@return true?, string?, qcow2.kind?, integer?
function image:bitmap_add(name, options) end

---@param name string
---@return true?, string?, qcow2.kind?, integer?
function image:bitmap_remove(name) end

---@param name string
---@return true?, string?, qcow2.kind?, integer?
function image:bitmap_enable(name) end

---@param name string
---@return true?, string?, qcow2.kind?, integer?
function image:bitmap_disable(name) end

---Marks every granule that the range touches as dirty.
---@param name string
---@param offset integer
---@param length integer
---@return true?, string?, qcow2.kind?, integer?
function image:bitmap_set(name, offset, length) end

---Marks the range, or the whole disk, as clean.
---@param name string
---@param offset? integer
---@param length? integer
---@return true?, string?, qcow2.kind?, integer?
function image:bitmap_clear(name, offset, length) end

---Adds the dirty ranges of bitmap `source` (of this image, or of `from`) to bitmap `name`.
---@param name string
---@param source string
---@param options? {from?:qcow2.image}
---@return true?, string?, qcow2.kind?, integer?
function image:bitmap_merge(name, source, options) end

---Changes what can be changed of an image that exists. All that can be refused is refused before anything changes;
---each option is then one switch on disk, and the contents are the same at every instant.
---@param options qcow2.amend_options
---@return true?, string?, qcow2.kind?, integer?
function image:amend(options) end

---Compares the external data file, byte for byte, with the disk that the guest sees. `resync` "data": the file gets
---what the guest reads; "metadata": the guest reads what the file holds.
---@param options? {resync?:"data"|"metadata", progress?:fun(done: integer, total: integer)}
---@return qcow2.verify_report? report
---@return string? message
---@return qcow2.kind? kind
---@return integer? errno
function image:verify(options) end

---Closes; every error of a flush comes out here. Closing twice is fine.
---@return true?, string?, qcow2.kind?, integer?
function image:close() end

---@class qcow2.divergence
---@field offset integer  guest bytes; "tail": bytes of the file behind the disk's end
---@field length integer
---@field cause "zero"|"unallocated"|"copied-lost"|"backing"|"wrong-offset"|"not-copied"|"compressed"|"invalid"|"short"|"tail"
---@field meaning string

---@class qcow2.verify_report
---@field same boolean            the data file is the disk, by now
---@field raw boolean             the image promises that it is
---@field divergences qcow2.divergence[]  in the disk's order, at most 100000
---@field found integer
---@field mended integer          by the resync
---@field omitted integer         found and not listed

---@class qcow2.amend_options
---@field compat? "0.10"|"1.1"|"v2"|"v3"
---@field lazy_refcounts? boolean
---@field refcount_bits? integer
---@field backing_file? string|false  the stored name alone changes; false: none
---@field backing_fmt? "qcow2"|"raw"  a new name needs one
---@field data_file? string           the stored name alone changes; "": none is stored, it is named at each opening
---@field data_file_raw? boolean      on: what the data file lacks of the disk is written there
---@field size? qcow2.size
---@field shrink? boolean             a smaller size is meant
---@field progress? fun(done: integer, total: integer)

---What one kind of finding means.
---@class qcow2.problem
---@field kind string
---@field severity "corruption"|"leak"|"note"|"unreadable"
---@field repairable boolean
---@field on_request boolean     repairing it, or some of it, loses something: it has to be named in `kinds`
---@field meaning string
---@field loss string           what repairing it loses; "" when it cannot be repaired

---Its tostring is a sentence. Numbers that mean nothing for its kind are nil.
---@class qcow2.finding: qcow2.problem
---@field count integer         clusters or entries that this record stands for
---@field host_offset? integer
---@field host_length? integer
---@field guest_offset? integer in the disk, or in that of `snapshot`
---@field guest_length? integer
---@field refcount? integer     as stored
---@field references? integer   as counted
---@field entry? integer        the entry's raw word
---@field bitmap? integer       its second word, with extended L2
---@field entry_offset? integer where it lies in the file
---@field index? integer        of the entry in its table, of the bitmap
---@field snapshot? integer     index in the snapshot table, from 0
---@field reason? string        kind "unreadable": what the host said
---@field first? string         of two that overlap: "L2 table", "guest data", ...
---@field second? string

---Sums count findings that were not kept too.
---@class qcow2.check_report
---@field findings qcow2.finding[]
---@field found table<string, integer>  by kind
---@field corruptions integer
---@field leaks integer
---@field check_errors integer          structures that could not be read
---@field omitted integer               findings not kept
---@field incomplete boolean            some table could not be followed: leaks may be none
---@field image_end_offset integer      behind the last cluster in use
---@field total_clusters integer        of the guest's disk
---@field allocated_clusters integer
---@field fragmented_clusters integer
---@field compressed_clusters integer

---What is left after a repair, and what is not.
---@class qcow2.repair_report: qcow2.check_report
---@field repaired qcow2.finding[]     what was found and is gone
---@field leaks_fixed integer          clusters
---@field corruptions_fixed integer

---@class qcow2.header   every field of the specification's header under its name there
---@class qcow2.extension
---@field type integer
---@field name string       "backing_format", "data_file", "feature_name_table", "bitmaps", "encryption", "unknown"
---@field offset integer    of its data in the file
---@field length integer
---@field data string
---@class qcow2.feature_name
---@field type "incompatible"|"compatible"|"autoclear"
---@field bit integer
---@field name string
---@class qcow2.feature_bit
---@field type "incompatible"|"compatible"|"autoclear"
---@field bit integer
---@field name string       the specification's, else the image's own name for it, else "unknown"
---@field known boolean

---Indexed from 0; `#l1` is the number of entries.
---@class qcow2.l1_table
---@class qcow2.l1_entry
---@field index integer
---@field raw integer
---@field offset integer     of the L2 table; 0: none
---@field copied boolean
---@field l2? qcow2.l2_table
---@class qcow2.l2_table     indexed from 0
---@class qcow2.l2_entry
---@field index integer
---@field raw integer
---@field bitmap? integer    second word with extended L2
---@field kind "data"|"zero"|"unallocated"|"compressed"|"mixed"
---@field host_offset? integer
---@field host_length? integer compressed: bytes of the sectors
---@field copied boolean
---@field guest_offset integer
---@class qcow2.refcount_table  indexed from 0; each entry {index, raw, offset}

---@class qcow2.snapshot
---@field id string
---@field name string
---@field size integer       disk size then, bytes
---@field l1_offset integer
---@field l1_entries integer
---@field vm_state_size integer
---@field date_sec integer
---@field date_nsec integer
---@field vm_clock_nsec integer
---@field icount? integer
---@field extra_data string

---@class qcow2.bitmap_info
---@field name string
---@field granularity integer   bytes
---@field auto boolean
---@field in_use boolean
---@field enabled boolean
---@field type integer
---@field table_offset integer
---@field table_entries integer
---@field extra_data string

---@class qcow2.bitmap: qcow2.bitmap_info
local bitmap = {}

---Iterates `offset, length` of the dirty guest ranges. Raises once the bitmap was removed, also when another of its name
---came since.
---@return fun():integer?, integer?
function bitmap:extents() end

return qcow2
