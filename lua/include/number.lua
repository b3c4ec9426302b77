-- Lua's tostring keeps 14 digits; times and places need 16.
local function whole(number)
  return string.format('%.0f', number)
end
