#!lua flags=allow-oom
-- ask: lets a desk without a WebSocket have the next item, or wait for one for as long as a request does.
-- KEYS: totals hash, waiting zset, locks zset, seats zset, asks zset, walks zset, log stream, heads hash, beats zset
-- ARGV: clock_ms (ms, 0: server time), nonce (of the caller's process, begins new tokens), lock_ms (ms), moderator, by (the request), home (process that hears of changes), wait_ms (ms, 0: not at all), keep_ms (ms after the wait until the desk is left unless it asks again)
-- Returns: 1 | 0 no such desk | -1 it has a WebSocket
-- Guards: I2 I8 I9
-- Repeat: may give one item more, to a desk that may hold several
-- Cost: O(log n) per seat and line looked at: at most 160 heads and 200 items passed over
local totals, waiting, locks, seats, asks, walks, log, heads, beats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local clock_ms, nonce, lock_ms, moderator, by, home, wait_ms, keep_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])

--@include number
--@include clock
--@include write
--@include desk
--@include heads
--@include match
local desk = read_desk(moderator)
if not desk then
  return 0
end
if desk.kind == 'socket' and desk.by ~= '' then
  return -1
end
if desk.by ~= '' then
  tell(desk.home, moderator)
end
desk.kind, desk.by, desk.home = 'http', by, home
write('ZADD', beats, whole(now_ms + wait_ms + keep_ms), moderator)
if desk.held > 0 then -- this request is shown it: another whose client has gone gives it back no more
  for _, id in ipairs(redis.call('ZRANGE', prefix .. 'held:' .. moderator, 0, 15)) do
    write('HSET', prefix .. 'item:' .. id, {'by', by})
  end
end
serve_desk(desk, resume_walk(desk))
if desk.by ~= '' and (wait_ms == 0 or not has_room(desk)) then
  desk.by = ''
  leave_walk(desk)
  leave_seat(desk)
end
if desk.by == '' then
  write('ZREM', asks, moderator)
else
  write('ZADD', asks, whole(now_ms + wait_ms), moderator)
end
save_desk(desk)
commit()
return 1
