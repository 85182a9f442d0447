# SSHLogin('ada@node1', identity='~/.ssh/cluster')
# SSHLogin('eve@node2:2222', identity='~/.ssh/cluster')
# -- job.sh
beginning() {
    stat=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) || return 0
    case $stat in Z*|X*|"") ;; *) echo "$stat" | cut -d' ' -f20 ;; esac
}
is_alive() {
    read -r pid begun <"$1/pid" 2>/dev/null && [ -n "$begun" ] && [ "$(beginning "$pid")" = "$begun" ]
}

echo "$$ $(beginning $$)" >/tmp/hpcpool-x1/b1/pid.new && mv /tmp/hpcpool-x1/b1/pid.new /tmp/hpcpool-x1/b1/pid && echo started >&3
exec 3>&-
cd -- /home/me/project 2>/dev/null || { cd; echo "there is no folder "/home/me/project" here: it starts in $PWD" >&2; }
trap : TERM
/bin/bash /tmp/hpcpool-x1/b1/body.sh
code=$?
echo $code >/tmp/hpcpool-x1/b1/code.new && mv /tmp/hpcpool-x1/b1/code.new /tmp/hpcpool-x1/b1/code
# -- body.sh
# A manager.
