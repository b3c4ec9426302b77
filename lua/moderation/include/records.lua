-- What a decision means, and where it is recorded: in timelines of all, of its moderator, of its category and of its
-- outcome, which forget what is older than keep_ms as they record, at most 16 entries a call.
local MOST_SKIPS, FORGOTTEN = 100, 16

-- The outcome of a decision, the level at which the item goes on, and the votes that stand then ("decision:moderator"
-- separated by line breaks; a moderator may have any other character in their name).
local function weigh(item, decision, to_level, two_person)
  local category = string.match(item.skill, '^[^:]*')
  local alone = item.votes == '' and not string.find(' ' .. two_person .. ' ', ' ' .. category .. ' ', 1, true)
  if decision == 'skip' then
    return 'skipped', item.level, item.votes
  elseif decision == 'escalate' then
    return 'escalated', to_level, ''
  end
  local outcome = decision == 'approve' and 'approved' or 'rejected'
  local vote = decision .. ':' .. item.moderator
  if alone then
    return outcome, item.level, vote
  end
  local votes = item.votes == '' and vote or item.votes .. '\n' .. vote
  if item.votes == '' then
    return 'voted', item.level, votes
  end
  if string.find('\n' .. item.votes, '\n' .. decision .. ':', 1, true) then
    return outcome, item.level, votes
  end
  -- They disagree: those of a higher level begin anew. There is none above the highest, where a third vote decides.
  if item.level < LEVELS then
    return 'escalated', item.level + 1, ''
  end
  return 'voted', item.level, votes
end

local function keep_record(token, moderator, skill, outcome)
  local category = string.match(skill, '^[^:]*')
  local keys = {
    decisions, decisions .. '_by_outcome:' .. outcome, decisions .. '_by_moderator:' .. moderator,
    decisions .. '_by_category:' .. category,
  }
  for index, key in ipairs(keys) do
    local old = redis.call('ZRANGEBYSCORE', key, '-inf', whole(now_ms - keep_ms), 'LIMIT', 0, FORGOTTEN)
    seen(key, 'zset')
    write('ZADD', key, now, token)
    if #old > 0 then
      write('ZREM', key, old)
    end
    if index > 2 then -- whoever decides no more leaves nothing behind
      write('PEXPIRE', key, whole(keep_ms))
    end
  end
end
