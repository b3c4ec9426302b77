#!lua
-- submit: takes a new item and gives it to the moderator who has waited longest for one like it, or puts it in line.
-- KEYS: totals hash, waiting zset, locks zset, seats zset, asks zset, walks zset, log stream, heads hash, open zset
-- ARGV: clock_ms (ms, 0: server time), nonce (of the caller's process, begins new tokens), lock_ms (ms), bound (most items that are open), id, body (JSON), author, skill (category:language), level (1-5), priority (0-9), submitted_ms (ms, 0 or in the future: now)
-- Returns: 1 new | 0 known with this body | -1 known with another | -2 as many are open as may be
-- Guards: I1 I2 I7 I8 I9 I10
-- Repeat: same answer (a new item hears "known")
-- Cost: O(log n), and at most 5 heads and 200 desks
local totals, waiting, locks, seats, asks, walks, log, heads, open = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local clock_ms, nonce, lock_ms, bound, id, body, author, skill, level, priority, submitted_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])

if not (bound and level and level >= 1 and level <= 5 and priority and priority >= 0 and priority <= 9 and submitted_ms) then
  return redis.error_reply('PROTOCOL submit takes a level of 1 to 5 and a priority of 0 to 9')
end
--@include number
--@include clock
--@include write
--@include desk
--@include heads
--@include match
local item = {id = id, key = prefix .. 'item:' .. id, author = author, skill = skill, level = level}
local known = redis.call('HGET', item.key, 'body')
seen(item.key, 'hash')
if known then
  return known == body and 0 or -1
end
if redis.call('ZCARD', open) >= bound then
  return -2
end
seen(open, 'zset')
local at_ms = submitted_ms > 0 and math.min(submitted_ms, now_ms) or now_ms
item.place = priority * 2 ^ 42 + at_ms
write('HSET', item.key, {
  'body', body, 'author', author, 'skill', skill, 'level', level, 'place', whole(item.place), 'came', now,
})
write('ZADD', open, whole(at_ms), id)
note('came', item, '', author)
place_item(item)
commit()
return 1
