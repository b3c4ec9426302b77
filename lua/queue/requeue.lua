#!lua flags=allow-oom
-- requeue: gives a dead job a new life at the end of its priority's line; attempts go on counting, failures and crashes start again.
-- KEYS: jobs hash, results hash, history hash, ready zset, open zset, dead zset, claims hash, config hash, totals hash, bell list
-- ARGV: clock_ms (ms, 0: server time), count (jobs, at most 1000); then per job: id, token (the one that settled it)
-- Returns: {now ms, per job: 1 requeued | 0 not dead by that token}
-- Guards: I1 I3 I8 I10
-- Repeat: same answer, until the job is claimed again
-- Cost: O(log n) per job
local jobs, results, history, ready, open, dead, claims, config, totals, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local clock_ms, count = ARGV[1], tonumber(ARGV[2])
local FIRST = 3

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count * 2 then
  return redis.error_reply('PROTOCOL requeue takes 1 to 1000 jobs of 2 fields')
end
--@include clock
--@include number
--@include bell
--@include row
--@include history

local ids = {}
for index = 1, count do
  ids[index] = ARGV[FIRST + 2 * (index - 1)]
end
redis.call('HLEN', jobs)
redis.call('ZCARD', ready)
redis.call('ZCARD', open)
redis.call('HLEN', totals)
redis.call('LLEN', bell)
local paused = redis.call('HGET', config, 'paused') == '1'
local rows = redis.call('HMGET', claims, unpack(ids))
local lines = redis.call('HMGET', results, unpack(ids))
local deaths = redis.call('ZMSCORE', dead, unpack(ids))
local histories = redis.call('HMGET', history, unpack(ids))
local answers, revived, new_rows, places, opened, failures_of, handled = {now_ms}, {}, {}, {}, {}, {}, {}
for index, id in ipairs(ids) do
  local token = ARGV[FIRST + 2 * index - 1]
  local again = 'requeue/' .. token .. ':'
  local settled_by, attempt, _, place
  if deaths[index] and lines[index] then
    settled_by, attempt, _, _, place = parse_row(string.match(lines[index], '^dead:(.-):%d+:%d+\n') or '', id)
  end
  if handled[id] == token or rows[index] and string.sub(rows[index], 1, #again) == again then
    table.insert(answers, 1)
  elseif settled_by == token then
    place = math.floor(place / PRIORITY_STEP) * PRIORITY_STEP + now_ms
    handled[id] = token
    table.insert(answers, 1)
    table.insert(revived, id)
    table.insert(failures_of, id)
    table.insert(failures_of, longer_history(histories[index], string.match(lines[index], '\n(.*)')))
    table.insert(new_rows, id)
    table.insert(new_rows, make_row('requeue/' .. token, attempt, 0, 0, place))
    table.insert(places, whole(place))
    table.insert(places, id)
    table.insert(opened, now_ms)
    table.insert(opened, id)
  else
    table.insert(answers, 0)
  end
end
if #revived > 0 then
  redis.call('HSET', claims, unpack(new_rows))
  redis.call('HSET', history, unpack(failures_of))
  redis.call('ZADD', open, unpack(opened))
  redis.call('ZADD', ready, unpack(places))
  redis.call('ZREM', dead, unpack(revived))
  redis.call('HDEL', results, unpack(revived))
  redis.call('HINCRBY', totals, 'requeued', #revived)
  if not paused then
    ring()
  end
end
return answers
