#!lua flags=allow-oom
-- leave: closes a desk: what it holds goes back to the places that it had, and is offered at once.
-- KEYS: totals hash, waiting zset, locks zset, seats zset, asks zset, walks zset, log stream, heads hash, desks zset, beats zset
-- ARGV: clock_ms (ms, 0: server time), nonce (of the caller's process, begins new tokens), lock_ms (ms), moderator, by (only where this waits, empty: in any case)
-- Returns: 1 | 0 no such desk, or another has taken it over
-- Guards: I2 I3 I4 I8 I9
-- Repeat: no second effect
-- Cost: as submit for each item held, at most 10
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
if by ~= '' and open_desk and open_desk.by ~= by then
  return 0
end
return leave_desk(moderator)
