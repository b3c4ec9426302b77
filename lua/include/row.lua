-- A claims row is token:attempt:failures:crashes:place. The token names the live lease; once the lease is over it is
-- "-" (expired, or never claimed), or "retry/TOKEN", "release/TOKEN" or "requeue/TOKEN", so that a repeated call hears its
-- first answer. A job on its last chance that is leased but not started counts its crashes from WAITING on.
local PRIORITY_STEP = 2 ^ 42
local WAITING = 1000

local function refuse_row(id)
  error('PROTOCOL foreign row of job ' .. id .. ' in ' .. claims)
end

local function check_row(row, id)
  if not string.find(row, '^[^:]*:%d+:%d+:%d+:%d+$') then
    refuse_row(id)
  end
end

local function parse_row(row, id)
  local token, attempt, failures, crashes, place = string.match(row, '^([^:]*):(%d+):(%d+):(%d+):(%d+)$')
  if not token then
    refuse_row(id)
  end
  return token, tonumber(attempt), tonumber(failures), tonumber(crashes), tonumber(place)
end

local function make_row(token, attempt, failures, crashes, place)
  return token .. ':' .. attempt .. ':' .. failures .. ':' .. crashes .. ':' .. whole(place)
end
