#!lua flags=allow-oom
-- allowed: which of some commands the user who asks may not run; none of them is run.
-- KEYS: place hash
-- ARGV: count (commands, at most 1000); then per command: number of its words, the words
-- Returns: the positions of those that are refused, from 1; one that the server does not know is not among them
-- Guards: I8
-- Repeat: same answer
-- Cost: O(1) per command
local place = KEYS[1]
local count = tonumber(ARGV[1])
local FIRST = 2

if count < 1 or count > 1000 then
  return redis.error_reply('PROTOCOL allowed takes 1 to 1000 commands')
end

local refused, at = {}, FIRST
for position = 1, count do
  local words = tonumber(ARGV[at])
  local known, allowed = pcall(redis.acl_check_cmd, unpack(ARGV, at + 1, at + words))
  if known and not allowed then
    refused[#refused + 1] = position
  end
  at = at + 1 + words
end
return refused
