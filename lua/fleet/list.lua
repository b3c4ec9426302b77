#!lua flags=allow-oom
-- list: the runtimes that are noted, longest silent first.
-- KEYS: seen zset, about hash
-- ARGV: clock_ms (ms, 0: server time), limit (runtimes, at most 1000)
-- Returns: {now ms, then per runtime: id, last beat (ms), what it does (JSON)}
-- Guards: I8 I9
-- Repeat: same answer
-- Cost: O(log n) and O(1) per runtime
local seen, about = KEYS[1], KEYS[2]
local clock_ms, limit = ARGV[1], tonumber(ARGV[2])

if limit < 1 or limit > 1000 then
  return redis.error_reply('PROTOCOL list takes 1 to 1000 runtimes')
end
--@include clock

local found = redis.call('ZRANGE', seen, 0, limit - 1, 'WITHSCORES')
local answer = {now_ms}
for at = 1, #found, 2 do
  table.insert(answer, found[at])
  table.insert(answer, found[at + 1])
  table.insert(answer, redis.call('HGET', about, found[at]) or '{}')
end
return answer
