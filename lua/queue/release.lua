#!lua flags=allow-oom
-- release: gives leased jobs back to the places they had, uncounted; those to be cancelled are dead.
-- KEYS: ready zset, scheduled zset, running zset, started zset, open zset, done zset, dead zset, claims hash, results hash, waiters hash, cancels zset, config hash, totals hash, bell list
-- ARGV: clock_ms (ms, 0: server time), after (ms until they may be claimed, 0: now), count (jobs, at most 1000); then per job: id, token
-- Returns: {now ms, per job: 1 released | 0 lease lost}
-- Guards: I1 I2 I3 I4 I8 I10
-- Repeat: same answer, until the job is claimed again
-- Cost: O(log n) per job
local ready, scheduled, running, started, open, done, dead, claims, results, waiters, cancels, config, totals, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local clock_ms, after, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local FIRST = 4

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count * 2 then
  return redis.error_reply('PROTOCOL release takes 1 to 1000 jobs of 2 fields')
end
if not after or after < 0 or after > 3600000 then
  return redis.error_reply('PROTOCOL release takes 0 to 3600000 ms')
end
--@include clock
--@include number
--@include bell
--@include row
--@include finish

local ids, answers, released, places, rows, handled = {}, {now_ms}, {}, {}, {}, {}
for index = 1, count do
  ids[index] = ARGV[FIRST + 2 * (index - 1)]
end
redis.call('ZCARD', ready)
redis.call('ZCARD', scheduled)
redis.call('ZCARD', running)
redis.call('ZCARD', started)
redis.call('ZCARD', done)
redis.call('ZCARD', dead)
redis.call('HLEN', waiters)
redis.call('HLEN', totals)
redis.call('LLEN', bell)
local wishes = cancel_wishes(ids)
local lines = redis.call('HMGET', results, unpack(ids))
local submitted = redis.call('ZMSCORE', open, unpack(ids))
local starts = redis.call('ZMSCORE', started, unpack(ids))
local paused = redis.call('HGET', config, 'paused') == '1'
for index, row in ipairs(redis.call('HMGET', claims, unpack(ids))) do
  local id, token = ids[index], ARGV[FIRST + 2 * index - 1]
  local again = 'release/' .. token .. ':'
  local ended_so = lines[index] and string.sub(lines[index], 1, #again + 5) == 'dead:' .. again
  if row and string.sub(row, 1, #again) == again or ended_so or handled[id] == token then
    table.insert(answers, 1)
  elseif row and string.sub(row, 1, #token + 1) == token .. ':' then
    local _, attempt, failures, crashes, place = parse_row(row, id)
    handled[id] = token
    table.insert(answers, 1)
    if wishes[index] then
      finish(id, 'dead', 'release/' .. row, submitted[index], starts[index], CANCELLED)
    else
      table.insert(released, id)
      table.insert(places, whole(after > 0 and now_ms + after or place))
      table.insert(places, id)
      table.insert(rows, id)
      table.insert(rows, make_row('release/' .. token, attempt, failures, crashes % WAITING, place))
    end
  else
    table.insert(answers, 0)
  end
end
if #released > 0 then
  redis.call('HSET', claims, unpack(rows))
  redis.call('ZADD', after > 0 and scheduled or ready, unpack(places))
  redis.call('ZREM', running, unpack(released))
  redis.call('ZREM', started, unpack(released))
  redis.call('HINCRBY', totals, 'released', #released)
  if not paused then
    ring()
  end
end
write_finished()
tell_waiters()
return answers
