#!lua flags=allow-oom
-- decide: ends a lock by a decision: records it, and the item is decided, or stands in line again for others.
-- KEYS: totals hash, waiting zset, locks zset, seats zset, asks zset, walks zset, log stream, heads hash, open zset, decisions zset, untold zset
-- ARGV: clock_ms (ms, 0: server time), nonce (of the caller's process, begins new tokens), lock_ms (ms), keep_ms (ms that records are kept), id, token, decision (approve, reject, escalate or skip), reason, to_level (level of an escalation, else empty), two_person (categories in which two moderators must agree, separated by spaces), tells (1: the result is told to a task)
-- Returns: {field, value, ...} the record | 0 no such item | -1 it is not locked under this token | -2 another decision was made under it | -3 it was skipped too often | -4 an escalation goes to a higher level
-- Guards: I1 I2 I3 I4 I8 I9 I10
-- Repeat: same answer
-- Cost: O(log n), as submit for the item and as ask for the moderator
local totals, waiting, locks, seats, asks, walks, log, heads, open, decisions, untold = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local clock_ms, nonce, lock_ms, keep_ms, id, token, decision, reason, to_level, two_person, tells = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]

--@include number
--@include clock
--@include write
--@include desk
--@include heads
--@include match
--@include records

local record_key = prefix .. 'decision:' .. token
local record = redis.call('HGETALL', record_key)
seen(record_key, 'hash')
if #record > 0 then
  local made = redis.call('HMGET', record_key, 'item', 'decision', 'reason', 'to_level')
  local same = made[1] == id and made[2] == decision and made[3] == reason and made[4] == to_level
  return same and record or -2
end
local item = read_item(id)
if not item then
  return 0
end
local deadline = redis.call('ZSCORE', locks, id)
seen(locks, 'zset')
if item.state ~= 'assigned' or item.token ~= token or not deadline or tonumber(deadline) <= now_ms then
  return -1
end
if decision == 'skip' and item.skips >= MOST_SKIPS then
  return -3
end
local higher = tonumber(to_level) or 0
if decision == 'escalate' and not (higher > item.level and higher <= LEVELS) then
  return -4
end
local moderator = item.moderator
local outcome, level, votes = weigh(item, decision, higher, two_person)
local final = outcome == 'approved' or outcome == 'rejected'
record = {
  'token', token, 'item', id, 'moderator', moderator, 'decision', decision, 'reason', reason, 'to_level', to_level,
  'outcome', outcome, 'skill', item.skill, 'level', whole(item.level), 'assigned', item.since, 'decided', now, 'votes', votes,
}
write('HSET', record_key, record)
write('PEXPIRE', record_key, whole(keep_ms))
keep_record(token, moderator, item.skill, outcome)
local desk = unlock(item, outcome)
if final then
  write('HSET', item.key, {'state', outcome, 'votes', votes, 'decided', now})
  write('PEXPIRE', item.key, whole(keep_ms))
  write('ZREM', open, id)
  if tells == '1' then
    write('ZADD', untold, now, token)
  end
else
  local skips = decision == 'skip' and item.skips + 1 or item.skips
  write('HSET', item.key, {'x:' .. moderator, decision, 'votes', votes, 'level', whole(level), 'skips', whole(skips)})
  item.level, item.not_for = level, moderator
  place_item(item)
end
if desk then
  serve_desk(desk)
  save_desk(desk)
end
commit()
return record
