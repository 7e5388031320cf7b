-- SPDX-License-Identifier: MIT
-- Objects of `--object`: secrets, checked when they are named, read when they are needed.
local optlist = require("qcow2.cli.optlist")

local secrets = {}

local KNOWN = { ["qom-type"] = true, id = true, data = true, file = true, format = true }

---Reads one `--object` argument.
---@param definition string
---@return table? secret, string? message
function secrets.parse(definition)
  local secret = { format = "raw" }
  for _, entry in ipairs(optlist.parse(definition, "qom-type")) do
    if entry.key == "keyid" or entry.key == "iv" then
      return nil, "secrets that are themselves encrypted (keyid=, iv=) are not supported"
    elseif not KNOWN[entry.key] then
      return nil, ("Parameter '%s' is unexpected"):format(entry.key)
    end
    secret[entry.key] = entry.value
  end
  if secret["qom-type"] ~= "secret" then
    return nil, ("Parameter 'qom-type' does not accept value '%s'"):format(secret["qom-type"] or "")
  elseif not secret.id then
    return nil, "Parameter 'id' is missing"
  elseif secret.format ~= "raw" and secret.format ~= "base64" then
    return nil, ("Parameter 'format' does not accept value '%s'"):format(secret.format)
  elseif secret.data and secret.file then
    return nil, "'file' and 'data' are mutually exclusive"
  elseif not secret.data and not secret.file then
    return nil, "Either 'file' or 'data' must be provided"
  elseif secret.file then
    local file <close>, why = io.open(secret.file, "rb")
    local bytes
    if file then
      bytes, why = file:read("a")
    end
    if not bytes then
      return nil, ("Unable to read %s: %s"):format(secret.file, (why or ""):match("[^:]*$"):gsub("^ ", ""))
    end
    secret.data = bytes
  end
  return secret
end

---Takes all `--object` arguments of a command into the context.
---@param context qcow2.cli.context
---@param definitions string[]?
---@return true?, string? message
function secrets.take(context, definitions)
  for _, definition in ipairs(definitions or {}) do
    local secret, message = secrets.parse(definition)
    if not secret then
      return nil, message
    elseif context.secrets[secret.id] then
      return nil, ("attempt to add duplicate property '%s' to object (type 'container')"):format(secret.id)
    end
    context.secrets[secret.id] = secret
  end
  return true
end

return secrets
