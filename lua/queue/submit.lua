#!lua
-- submit: takes new jobs into one queue, each in its turn; the bound counts every unfinished job.
-- KEYS: jobs hash, ready zset, scheduled zset, open zset, claims hash, config hash, totals hash, bell list
-- ARGV: clock_ms (ms, 0: server time), quiet (1: rings no bell, since a claim of the caller's follows), count (jobs, at most 1000); then per job: id, envelope (bytes), priority (0-9), due ("0" now, "+N" in N ms, "N" at UTC ms)
-- Returns: {now ms, per job: 1 new | 0 known with this envelope | -1 known with another | -2 queue full}
-- Guards: I1 I6 I7 I8 I9 I10
-- Repeat: same answer (a new job hears "known")
-- Cost: O(log n) per job
local jobs, ready, scheduled, open, claims, config, totals, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local clock_ms, quiet, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local FIELDS, FIRST = 4, 4

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count * FIELDS then
  return redis.error_reply('PROTOCOL submit takes 1 to 1000 jobs of 4 fields')
end
--@include clock
--@include number
--@include bell
--@include row

local ids, answers = {}, {now_ms}
for index = 0, count - 1 do
  ids[index + 1] = ARGV[FIRST + index * FIELDS]
end
local known = redis.call('HMGET', jobs, unpack(ids))
local unfinished = redis.call('ZCARD', open)
local bound = tonumber(redis.call('HGET', config, 'bound') or '') or math.huge
local rings = redis.call('LLEN', bell) == 0 and quiet ~= '1' and redis.call('HGET', config, 'paused') ~= '1'
local first_due = tonumber(redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]) or math.huge
redis.call('ZCARD', ready)
redis.call('HLEN', claims)
redis.call('HLEN', totals)

-- A number that goes to a command as text is made text once; table positions are counted, not looked up.
local now = whole(now_ms)
local places = {}
local records, opened, lined_up, delayed, rows, taken = {}, {}, {}, {}, {}, {}
local taken_count, ready_count, delayed_count, repeated = 0, 0, 0, 0
local sooner = false
for index, id in ipairs(ids) do
  local at = FIRST + (index - 1) * FIELDS
  local envelope, priority, due = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local before = known[index] or taken[id]
  if before then
    repeated = repeated + 1
    answers[index + 1] = before == envelope and 0 or -1
  elseif unfinished >= bound then
    answers[index + 1] = -2
  else
    unfinished = unfinished + 1
    taken[id] = envelope
    answers[index + 1] = 1
    taken_count = taken_count + 2
    records[taken_count - 1], records[taken_count] = id, envelope
    opened[taken_count - 1], opened[taken_count] = now, id
    local due_ms = due == '0' and 0 or tonumber(due)
    if due_ms and string.sub(due, 1, 1) == '+' then
      due_ms = now_ms + due_ms
    end
    if not string.match(priority, '^%d$') or not due_ms or not (due_ms >= 0 and due_ms < PRIORITY_STEP) then
      return redis.error_reply('PROTOCOL submit: job ' .. id .. ' has no priority from 0 to 9 or no time in ms')
    end
    if due_ms > now_ms then
      delayed_count = delayed_count + 2
      delayed[delayed_count - 1], delayed[delayed_count] = whole(due_ms), id
      rows[delayed_count - 1], rows[delayed_count] = id, make_row('-', 0, 0, 0, priority * PRIORITY_STEP + due_ms)
      sooner = sooner or due_ms < first_due
    else
      places[priority] = places[priority] or whole(priority * PRIORITY_STEP + now_ms)
      ready_count = ready_count + 2
      lined_up[ready_count - 1], lined_up[ready_count] = places[priority], id
    end
  end
end

-- The record stands before any set names its job.
if #records > 0 then
  redis.call('HSET', jobs, unpack(records))
  redis.call('ZADD', open, unpack(opened))
  redis.call('HINCRBY', totals, 'submitted', #records / 2)
end
if #delayed > 0 then
  redis.call('HSET', claims, unpack(rows))
  redis.call('ZADD', scheduled, unpack(delayed))
end
if #lined_up > 0 then
  redis.call('ZADD', ready, unpack(lined_up))
end
-- A repeat writes too: WAIT and WAITAOF speak only for writes of their own connection, and a receipt needs one.
if repeated > 0 then
  redis.call('HINCRBY', totals, 'repeated', repeated)
end
-- A new first due time rings as well: whoever answers learns from claim when to look again.
if rings and (#lined_up > 0 or sooner) then
  ring()
end
return answers
