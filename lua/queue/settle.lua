#!lua flags=allow-oom
-- settle: ends attempts: state, result and effects land together, job by job, or the job changes nothing.
-- KEYS: running zset, started zset, scheduled zset, open zset, done zset, dead zset, claims hash, results hash, waiters hash, totals hash, config hash, bell list
-- ARGV: clock_ms (ms, 0: server time), count (jobs, at most 1000); then per job: id, token, kind (done | retry | dead), delay_ms (ms, for retry), failed (1: counts as a failure), result (JSON), effects (how many); then per effect: op, name (below :d:), words (how many), words
-- Returns: {now ms, per job: 1 settled | 0 lease lost | text: dead instead, because of this effect}
-- Guards: I1 I2 I3 I5 I8 I9 I10
-- Repeat: same answer
-- Cost: O(log n) per job and effect
local running, started, scheduled, open, done, dead, claims, results, waiters, totals, config, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local clock_ms, count = ARGV[1], tonumber(ARGV[2])
local MOST_EFFECTS = 1000

if count < 1 or count > 1000 then
  return redis.error_reply('PROTOCOL settle takes 1 to 1000 jobs')
end
--@include clock
--@include number
--@include bell
--@include row
--@include finish
--@include effects

-- Read the arguments as a whole before anything is written.
local at = 3
local function take()
  local word = ARGV[at]
  if not word then
    error('PROTOCOL settle has fewer arguments than it counts')
  end
  at = at + 1
  return word
end
local ids, settles = {}, {}
for index = 1, count do
  local job = {id = take(), token = take(), kind = take(), delay_ms = tonumber(take()), failed = tonumber(take()), result = take(), effects = {}}
  local effect_count = tonumber(take())
  if effect_count > MOST_EFFECTS then
    return redis.error_reply('PROTOCOL job ' .. job.id .. ' has more than 1000 effects')
  end
  for number = 1, effect_count do
    local effect = {op = take(), key = data_prefix .. take()}
    for word = 1, tonumber(take()) do
      effect[word] = take()
    end
    job.effects[number] = effect
  end
  ids[index] = job.id
  settles[index] = job
end

local rows = redis.call('HMGET', claims, unpack(ids))
local settled = redis.call('HMGET', results, unpack(ids))
local submitted = redis.call('ZMSCORE', open, unpack(ids))
local starts = redis.call('ZMSCORE', started, unpack(ids))
local first_due = tonumber(redis.call('ZRANGE', scheduled, 0, 0, 'WITHSCORES')[2]) or math.huge
local paused = redis.call('HGET', config, 'paused') == '1'
redis.call('ZCARD', running)
redis.call('ZCARD', done)
redis.call('ZCARD', dead)
redis.call('HLEN', waiters)
redis.call('HLEN', totals)
redis.call('LLEN', bell)

-- What a call without a live lease hears: its own answer again, if the token was the one that settled.
local function answer_again(job, row, line)
  if line then
    local kind, token = string.match(line, '^(%a+):([^:]+):')
    if token ~= job.token then
      return 0
    end
    return kind == job.kind and 1 or 'the effects of this attempt were refused, as the result of the job says'
  end
  return (row and job.kind == 'retry' and string.sub(row, 1, #job.token + 7) == 'retry/' .. job.token .. ':') and 1 or 0
end

local answers, retried, handled = {now_ms}, {}, {}
local sooner = false
for index, job in ipairs(settles) do
  local id, row = job.id, rows[index]
  if handled[id] or not row or string.sub(row, 1, #job.token + 1) ~= job.token .. ':' then
    table.insert(answers, handled[id] == job.token and 1 or answer_again(job, row, settled[index]))
  else
    handled[id] = job.token
    local refusal = refuse_effects(job.effects)
    if refusal then
      table.insert(answers, refusal)
      finish(id, 'dead', row, submitted[index], starts[index], cjson.encode({error = 'BadEffect', message = refusal}))
    else
      table.insert(answers, 1)
      apply_effects(job.effects)
      if job.kind == 'retry' then
        local token, attempt, failures, crashes, place = parse_row(row, id)
        local due_ms = now_ms + job.delay_ms
        place = math.floor(place / PRIORITY_STEP) * PRIORITY_STEP + due_ms
        redis.call('HSET', claims, id, make_row('retry/' .. token, attempt, failures + job.failed, crashes, place))
        redis.call('ZADD', scheduled, due_ms, id)
        table.insert(retried, id)
        sooner = sooner or due_ms < first_due
      else
        finish(id, job.kind, row, submitted[index], starts[index], job.result)
      end
    end
  end
end
write_finished()
if #retried > 0 then
  redis.call('ZREM', running, unpack(retried))
  redis.call('ZREM', started, unpack(retried))
  redis.call('HINCRBY', totals, 'retried', #retried)
  if sooner and not paused then
    ring()
  end
end
return answers
