#!lua flags=allow-oom
-- extend: moves the deadline of a lock that is still held.
-- KEYS: locks zset
-- ARGV: clock_ms (ms, 0: server time), lock_ms (ms from now), id, token
-- Returns: the new deadline in ms | 0 no such item | -1 it is not locked under this token
-- Guards: I2 I3 I8 I9
-- Repeat: same answer
-- Cost: O(log n)
local locks = KEYS[1]
local clock_ms, lock_ms, id, token = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

--@include number
--@include clock

local key = string.match(locks, '^(.*)locks$') .. 'item:' .. id
local row = redis.call('HMGET', key, 'state', 'token')
local deadline = redis.call('ZSCORE', locks, id)
if not row[1] then
  return 0
end
if row[1] ~= 'assigned' or row[2] ~= token or not deadline or tonumber(deadline) <= now_ms then
  return -1
end
redis.call('ZADD', locks, whole(now_ms + lock_ms), id)
return now_ms + lock_ms
