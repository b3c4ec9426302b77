#!lua flags=allow-oom
-- release: gives leased jobs back to the places they had; it counts neither as a failure nor as a crash.
-- KEYS: ready zset, running zset, started zset, claims hash, config hash, totals hash, bell list
-- ARGV: clock_ms (ms, 0: server time), count (jobs, at most 1000); then per job: id, token
-- Returns: {now ms, per job: 1 released | 0 lease lost}
-- Guards: I1 I2 I3 I4 I8 I10
-- Repeat: same answer, until the job is claimed again
-- Cost: O(log n) per job
local ready, running, started, claims, config, totals, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local clock_ms, count = ARGV[1], tonumber(ARGV[2])
local FIRST = 3

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count * 2 then
  return redis.error_reply('PROTOCOL release takes 1 to 1000 jobs of 2 fields')
end
--@include clock
--@include number
--@include bell
--@include row

local ids, answers, released, places, rows, handled = {}, {now_ms}, {}, {}, {}, {}
for index = 1, count do
  ids[index] = ARGV[FIRST + 2 * (index - 1)]
end
redis.call('ZCARD', ready)
redis.call('ZCARD', running)
redis.call('ZCARD', started)
redis.call('HLEN', totals)
redis.call('LLEN', bell)
local paused = redis.call('HGET', config, 'paused') == '1'
for index, row in ipairs(redis.call('HMGET', claims, unpack(ids))) do
  local id, token = ids[index], ARGV[FIRST + 2 * index - 1]
  if row and string.sub(row, 1, #token + 9) == 'release/' .. token .. ':' or handled[id] == token then
    table.insert(answers, 1)
  elseif row and string.sub(row, 1, #token + 1) == token .. ':' then
    local _, attempt, failures, crashes, place = parse_row(row, id)
    handled[id] = token
    table.insert(answers, 1)
    table.insert(released, id)
    table.insert(places, whole(place))
    table.insert(places, id)
    table.insert(rows, id)
    table.insert(rows, make_row('release/' .. token, attempt, failures, crashes % WAITING, place))
  else
    table.insert(answers, 0)
  end
end
if #released > 0 then
  redis.call('HSET', claims, unpack(rows))
  redis.call('ZADD', ready, unpack(places))
  redis.call('ZREM', running, unpack(released))
  redis.call('ZREM', started, unpack(released))
  redis.call('HINCRBY', totals, 'released', #released)
  if not paused then
    ring()
  end
end
return answers
