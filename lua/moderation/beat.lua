#!lua flags=allow-oom
-- beat: keeps the desks of one process open; what is not kept is left.
-- KEYS: beats zset
-- ARGV: clock_ms (ms, 0: server time), keep_ms (ms until a desk is left unless it beats again), count (desks, at most 1000); then per desk: moderator, by (its WebSocket)
-- Returns: per desk: its version, which grows with every change | -1 no such desk | -2 another has taken it over
-- Guards: I3 I8 I9
-- Repeat: same answer
-- Cost: O(log n) per desk
local beats = KEYS[1]
local clock_ms, keep_ms, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

if count < 1 or count > 1000 or #ARGV ~= 3 + 2 * count then
  return redis.error_reply('PROTOCOL beat takes 1 to 1000 desks of 2 fields')
end
--@include number
--@include clock

local prefix = string.match(beats, '^(.*)beats$')
redis.call('ZCARD', beats)
local answers, kept = {}, {}
for index = 1, count do
  local moderator, by = ARGV[2 + 2 * index], ARGV[3 + 2 * index]
  local row = redis.call('HMGET', prefix .. 'desk:' .. moderator, 'by', 'version')
  local answer = row[1] == by and tonumber(row[2]) or row[1] and -2 or -1
  if answer >= 0 then
    table.insert(kept, whole(now_ms + keep_ms))
    table.insert(kept, moderator)
  end
  table.insert(answers, answer)
end
if #kept > 0 then
  redis.call('ZADD', beats, unpack(kept))
end
return answers
