#!lua flags=allow-oom
-- renew: moves the deadlines of live leases; a stale token moves nothing.
-- KEYS: running zset, claims hash, cancels zset
-- ARGV: clock_ms (ms, 0: server time), lease_ms (ms), count (jobs, at most 1000); then per job: id, token
-- Returns: {now ms, per job: 1 renewed | 2 renewed, and to be cancelled | 0 lease lost}
-- Guards: I2 I3 I8 I9
-- Repeat: same answer
-- Cost: O(log n) per job
local running, claims, cancels = KEYS[1], KEYS[2], KEYS[3]
local clock_ms, lease_ms, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local FIRST = 4

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count * 2 then
  return redis.error_reply('PROTOCOL renew takes 1 to 1000 jobs of 2 fields')
end
--@include clock

local ids, answers, deadlines = {}, {now_ms}, {}
for index = 1, count do
  ids[index] = ARGV[FIRST + 2 * (index - 1)]
end
redis.call('ZCARD', running)
local wishes = redis.call('ZCARD', cancels) > 0 and redis.call('ZMSCORE', cancels, unpack(ids)) or {}
for index, row in ipairs(redis.call('HMGET', claims, unpack(ids))) do
  local token = ARGV[FIRST + 2 * index - 1]
  if row and string.sub(row, 1, #token + 1) == token .. ':' then
    table.insert(deadlines, now_ms + lease_ms)
    table.insert(deadlines, ids[index])
    table.insert(answers, wishes[index] and 2 or 1)
  else
    table.insert(answers, 0)
  end
end
if #deadlines > 0 then
  redis.call('ZADD', running, 'XX', unpack(deadlines))
end
return answers
