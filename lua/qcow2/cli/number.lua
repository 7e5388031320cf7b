-- SPDX-License-Identifier: MIT
-- Numbers and sizes in words of the command line, and what is said of those that are none, in qemu-img's words.
local size = require("qcow2.size")
local text = require("qcow2.cli.text")

local number = {}

---The bytes that a word stands for: nil when it is no size; nil and true when it is one beyond all bounds.
---@param word string
---@return integer? bytes, boolean? out_of_range
local function parse(word)
  local sign, digits = word:match("^%s*(%-?)(.*)$")
  local bytes, why = size.parse(digits)
  if bytes then
    return sign == "-" and -bytes or bytes
  end
  return nil, why:find("too large", 1, true) ~= nil
end

---The value of an option or operand. gives: the number; or nil and a message.
---@param word string
---@param what string   what messages call it
---@param least? integer  default 0
---@param most? integer   default: the largest there is
---@param plain? boolean  without a suffix
---@return integer? number, string? message
function number.read(word, what, least, most, plain)
  least, most = least or 0, most or math.maxinteger
  local value, beyond
  if not plain or word:find("^%s*%-?%+?%d+$") or word:find("^%s*%-?0[xX]%x+$") then
    value, beyond = parse(word)
  end
  if value and value >= least and value <= most then
    return value
  elseif value or beyond then
    return nil, ("Invalid %s specified. Must be between %d and %d."):format(what, least, most)
  end
  return nil, ("Invalid %s specified: '%s'."):format(what, text.escape(word))
end

---A size among the options of -o, or the operand of resize. gives: bytes; or nil and a message.
---@param word string
---@param name string
---@return integer? bytes, string? message
function number.size_parameter(word, name)
  local bytes, beyond = parse(word)
  if bytes and bytes >= 0 then
    return bytes
  elseif bytes or beyond then
    return nil, ("Value '%s' is out of range for parameter '%s'"):format(text.escape(word), name)
  end
  return nil, ("Parameter '%s' expects a non-negative number below 2^64\n"
    .. "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
    .. "and exabytes, respectively."):format(name)
end

---A number among the options of -o. gives: it, which may be negative; or nil and a message.
---@param word string
---@param name string
---@return integer? number, string? message
function number.parameter(word, name)
  local sign, digits = word:match("^%s*([-+]?)(%d+)$")
  if not sign then
    sign, digits = word:match("^%s*([-+]?)(0[xX]%x+)$")
  end
  if not sign then
    return nil, ("Parameter '%s' expects a number"):format(name)
  end
  local value = size.parse(digits)
  if not value then
    return nil, ("Value '%s' is too large for parameter '%s'"):format(text.escape(word), name)
  end
  return sign == "-" and -value or value
end

return number
