-- SPDX-License-Identifier: MIT
-- Drives a program through a pseudo terminal, which `script` gives: keys go in with pauses, all that it shows comes
-- out.

local cc = require "spec.support.cc"
local sh = require "spec.support.sh"

local terminal = {}

--- Runs `command` (a shell's words) at a terminal of its own. keys: a list of strings to type, each after the time
-- that it takes to show a prompt; "\3" is Ctrl-C. gives: what was shown, without what moves the cursor, and the exit
-- code.
function terminal.run(command, keys, options)
  local pause = cc.is_sanitized() and 1 or 0.2
  local feed = {}
  for _, key in ipairs(keys) do
    feed[#feed + 1] = ("sleep %g; printf '%s'"):format(pause, key:gsub("[^%w ]", function(byte)
      return ("\\%03o"):format(byte:byte())
    end))
  end
  feed[#feed + 1] = "sleep " .. pause
  -- Without `exec` the shell that `script` starts may stay between and die of the Ctrl-C that the program survives.
  local line = ("{ %s; } | SHELL=/bin/sh timeout 30 script -qec \"exec %s\" /dev/null"):format(table.concat(feed, "; "),
    (command:gsub('[\\"$`]', "\\%0")))
  local result = sh.run(line, options)
  return (result.stdout:gsub("\27%[[%d;?]*%a", ""):gsub("\r", "")), result.code
end

return terminal
