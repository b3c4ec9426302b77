#!lua flags=allow-oom
-- look: what a desk holds now.
-- KEYS: locks zset
-- ARGV: moderator
-- Returns: {version, by, now ms, per item held: id, token, since ms, deadline ms, votes, level, body} | nil no such desk
-- Guards: I8
-- Repeat: same answer
-- Cost: O(log n) per item held, at most 10
local locks = KEYS[1]
local moderator = ARGV[1]

local clock_ms = '0'
--@include clock

local prefix = string.match(locks, '^(.*)locks$')
local row = redis.call('HMGET', prefix .. 'desk:' .. moderator, 'version', 'by')
if not row[1] then
  return nil
end
local shown = {tonumber(row[1]), row[2], now_ms}
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'held:' .. moderator, 0, 15)) do
  local item = redis.call('HMGET', prefix .. 'item:' .. id, 'token', 'since', 'votes', 'level', 'body', 'moderator')
  local deadline = redis.call('ZSCORE', locks, id)
  if deadline and item[6] == moderator then
    for _, value in ipairs({id, item[1], item[2], deadline, item[3] or '', item[4], item[5]}) do
      table.insert(shown, value)
    end
  end
end
return shown
