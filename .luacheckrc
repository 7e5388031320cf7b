-- What luacheck expects of the Lua files.
std = "lua54"
max_line_length = 120
-- `local value, message = ...` names all that a function answers, even where only the first is looked at.
unused_secondaries = false
exclude_files = { "lua/types" }
files["spec"] = { std = "+busted" }
-- The runner hands busted its arguments.
files["spec/support/run.lua"] = { globals = { "arg" } }
files[".busted"] = { std = "lua54" }
files["rockspec"] = { std = "rockspec" }
