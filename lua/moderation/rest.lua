#!lua flags=allow-oom
-- rest: ends the wait of a WebSocket that has dropped, or of a request that waits no longer; what is held stays for a while.
-- KEYS: totals hash, seats zset, asks zset, walks zset, beats zset
-- ARGV: clock_ms (ms, 0: server time), moderator, by (what waited), keep_ms (ms until the desk is left unless it comes back)
-- Returns: 1 | 0 it is another that waits, or none
-- Guards: I3 I8 I9
-- Repeat: no second effect
-- Cost: O(log n) per seat, at most 33
local totals, seats, asks, walks, beats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local clock_ms, moderator, by, keep_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

--@include number
--@include clock
--@include write
--@include desk
local desk = read_desk(moderator)
if not desk or not end_wait(desk, by) then
  return 0
end
write('ZADD', beats, whole(now_ms + keep_ms), moderator)
commit()
return 1
