#!lua flags=allow-oom
-- cancel: ends jobs on request: those that wait are dead at once, the holder of a running one is told and asked.
-- KEYS: ready zset, scheduled zset, running zset, started zset, open zset, done zset, dead zset, jobs hash, claims hash, results hash, waiters hash, cancels zset, totals hash
-- ARGV: clock_ms (ms, 0: server time), channel_prefix (what a runtime's id follows in the name of its channel), count (jobs, at most 1000); then per job: id
-- Returns: {now ms, per job: 2 cancelled | 1 its holder is asked | 0 finished already | -1 no such job}
-- Guards: I1 I3 I8 I9
-- Repeat: same answer
-- Cost: O(log n) per job
local ready, scheduled, running, started, open, done, dead, jobs, claims, results, waiters, cancels, totals = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local clock_ms, channel_prefix, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local FIRST = 4

if count < 1 or count > 1000 or #ARGV ~= FIRST - 1 + count then
  return redis.error_reply('PROTOCOL cancel takes 1 to 1000 jobs')
end
--@include clock
--@include number
--@include row
--@include finish

local ids = {}
for index = 1, count do
  ids[index] = ARGV[FIRST + index - 1]
end
local rows = redis.call('HMGET', claims, unpack(ids))
local lines = redis.call('HMGET', results, unpack(ids))
local known = redis.call('HMGET', jobs, unpack(ids))
local held = redis.call('ZMSCORE', running, unpack(ids))
local places = redis.call('ZMSCORE', ready, unpack(ids))
local submitted = redis.call('ZMSCORE', open, unpack(ids))
redis.call('ZCARD', scheduled)
redis.call('ZCARD', started)
redis.call('ZCARD', done)
redis.call('ZCARD', dead)
redis.call('ZCARD', cancels)
redis.call('HLEN', waiters)
redis.call('HLEN', totals)

-- Not the same for two deaths of a job: whoever requeues one names it.
local by = 'cancel/' .. whole(now_ms)
local answers, asked, handled = {now_ms}, {}, {}
for index, id in ipairs(ids) do
  local token, attempt, failures, crashes, place = by, 0, 0, 0, places[index] or now_ms
  if rows[index] then
    token, attempt, failures, crashes, place = parse_row(rows[index], id)
  end
  if handled[id] then
    answers[index + 1] = handled[id]
  elseif not known[index] then
    answers[index + 1] = -1
  elseif lines[index] then
    answers[index + 1] = string.match(lines[index], '^dead:cancel/') and 2 or 0
  elseif held[index] then
    answers[index + 1] = 1
    table.insert(asked, {id = id, token = token})
  else
    answers[index + 1] = 2
    finish(id, 'dead', make_row(by, attempt, failures, crashes, place), submitted[index], nil, CANCELLED)
  end
  handled[id] = answers[index + 1]
end
for _, job in ipairs(asked) do
  redis.call('ZADD', cancels, now_ms, job.id)
end
write_finished()
if #ended > 0 then
  redis.call('ZREM', ready, unpack(ended))
  redis.call('ZREM', scheduled, unpack(ended))
end
tell_waiters()
-- A message may be lost; then the next renewal of the lease says it.
for _, job in ipairs(asked) do
  redis.pcall('PUBLISH', channel_prefix .. string.match(job.token, '^[^.]*'), 'cancel\n' .. running .. '\n' .. job.id .. '\n' .. job.token)
end
return answers
