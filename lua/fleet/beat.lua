#!lua flags=allow-oom
-- beat: notes that a runtime lives and what it does, forgets a few that have been silent for long, and answers its orders.
-- KEYS: seen zset, about hash, orders hash
-- ARGV: clock_ms (ms, 0: server time), id, about_it (JSON), gone_ms (ms: who is silent for longer is forgotten)
-- Returns: {now ms, how many runtimes are noted, then name and value of each order}
-- Guards: I8 I9
-- Repeat: no second effect
-- Cost: O(log n), and as much for each of at most 100 that are forgotten
local seen, about, orders = KEYS[1], KEYS[2], KEYS[3]
local clock_ms, id, about_it, gone_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local KEEP_MS = 86400000
--@include clock
--@include number

local gone = redis.call('ZRANGEBYSCORE', seen, '-inf', '(' .. whole(now_ms - gone_ms), 'LIMIT', 0, 100)
local answer = redis.call('HGETALL', orders)
redis.call('HLEN', about)
redis.call('HSET', about, id, about_it)
redis.call('ZADD', seen, whole(now_ms), id)
for _, silent in ipairs(gone) do
  if silent ~= id then
    redis.call('ZREM', seen, silent)
    redis.call('HDEL', about, silent)
  end
end
redis.call('PEXPIRE', seen, KEEP_MS)
redis.call('PEXPIRE', about, KEEP_MS)
table.insert(answer, 1, redis.call('ZCARD', seen))
table.insert(answer, 1, now_ms)
return answer
