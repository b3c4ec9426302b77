#!lua flags=allow-oom
-- join: opens a moderator's desk, or takes it over, and gives it what has waited longest for it.
-- KEYS: totals hash, waiting zset, locks zset, seats zset, asks zset, walks zset, log stream, heads hash, desks zset, beats zset
-- ARGV: clock_ms (ms, 0: server time), nonce (of the caller's process, begins new tokens), lock_ms (ms), moderator, by (WebSocket that waits, empty: none), kind (socket or http), home (process that hears of changes), skills (at most 32 of category:language, separated by spaces), level (1-5), holds (most items at a time, 1-10), keep_ms (ms until the desk is left unless it beats)
-- Returns: 1
-- Guards: I2 I8 I9
-- Repeat: no second effect
-- Cost: O(log n) per seat and line looked at: at most 10 times 160 heads and 200 items passed over
local totals, waiting, locks, seats, asks, walks, log, heads, desks, beats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local clock_ms, nonce, lock_ms, moderator, by, kind, home, skills, level, holds, keep_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])

local _, skill_count = string.gsub(skills, '%S+', '')
if skill_count < 1 or skill_count > 32 or not (level and level >= 1 and level <= 5 and holds and holds >= 1 and holds <= 10 and keep_ms) then
  return redis.error_reply('PROTOCOL join takes 1 to 32 skills, a level of 1 to 5 and 1 to 10 items')
end
--@include number
--@include clock
--@include write
--@include desk
--@include heads
--@include match
local before = read_desk(moderator)
if before then
  unseat(before)
  tell(before.home, moderator)
end
write('HSET', prefix .. 'desk:' .. moderator, {'skills', skills, 'level', level, 'holds', holds})
local desk = {
  name = moderator, key = prefix .. 'desk:' .. moderator, by = by, kind = kind, home = home, skills = {}, level = level,
  holds = holds, since = '', version = before and before.version or 0, walks = false, partial = false, left = false,
  held = before and before.held or redis.call('ZCARD', prefix .. 'held:' .. moderator),
}
for skill in string.gmatch(skills, '%S+') do
  table.insert(desk.skills, skill)
end
write('ZREM', asks, moderator)
write('ZADD', beats, whole(now_ms + keep_ms), moderator)
write('ZADD', desks, {'NX', now, moderator})
serve_desk(desk)
save_desk(desk)
commit()
return 1
