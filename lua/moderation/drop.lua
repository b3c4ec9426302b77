#!lua flags=allow-oom
-- drop: ends a request whose client has gone: it waits no longer, and what it got goes back to the place that it had.
-- KEYS: totals hash, waiting zset, locks zset, seats zset, asks zset, walks zset, log stream, heads hash, desks zset, beats zset
-- ARGV: clock_ms (ms, 0: server time), nonce (of the caller's process, begins new tokens), lock_ms (ms), moderator, by (the request)
-- Returns: how many items went back
-- Guards: I2 I3 I4 I8 I9
-- Repeat: no second effect
-- Cost: as submit for each item that the request got, at most 10
local totals, waiting, locks, seats, asks, walks, log, heads, desks, beats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local clock_ms, nonce, lock_ms, moderator, by = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

--@include number
--@include clock
--@include write
--@include desk
--@include heads
--@include match
--@include leaving

local open_desk = read_desk(moderator)
if open_desk and end_wait(open_desk, by) then
  commit()
end
local returned = 0
for _, id in ipairs(redis.call('ZRANGE', prefix .. 'held:' .. moderator, 0, 15)) do
  local row = redis.call('HMGET', prefix .. 'item:' .. id, 'moderator', 'by')
  if row[1] == moderator and row[2] == by then
    take_back(id, 'dropped')
    returned = returned + 1
  end
end
return returned
