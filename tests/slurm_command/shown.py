"""What a real SLURM 22.05 printed, shortened where nothing reads it."""

from __future__ import annotations

PARTITIONS = """\
PartitionName=main AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=NONE \
DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO \
MaxCPUsPerNode=UNLIMITED Nodes=h[1-2] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO \
OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=8 TotalNodes=2 SelectTypeParameters=NONE JobDefaults=(null) \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=8,mem=8000M,node=2,billing=8
PartitionName=short AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A \
DefaultTime=00:30:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=1 MaxTime=1-12:00:00 \
MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=h[1-2] PriorityJobFactor=1 PriorityTier=10 RootOnly=NO ReqResv=NO \
OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=DOWN TotalCPUs=8 TotalNodes=2 SelectTypeParameters=NONE \
JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=2000 TRES=cpu=8,mem=8000M,node=2,billing=8
"""

NODES = """\
NodeName=h1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=4 CPUTot=4 CPULoad=2.45 AvailableFeatures=(null) \
ActiveFeatures=(null) Gres=gpu:a100:2 NodeAddr=10.77.0.11 NodeHostName=h1 Version=22.05.8 OS=Linux 6.18.44 #1 SMP \
PREEMPT_DYNAMIC @0  RealMemory=4000 AllocMem=0 FreeMem=10173 Sockets=4 Boards=1 State=IDLE ThreadsPerCore=1 TmpDisk=0 \
Weight=1 Owner=N/A MCS_label=N/A Partitions=main,short  BootTime=2026-11-24T10:28:11 CfgTRES=cpu=4,mem=4000M,billing=4 \
AllocTRES= CapWatts=n/a CurrentWatts=0 AveWatts=0 ExtSensorsJoules=n/s ExtSensorsWatts=0 ExtSensorsTemp=n/s
NodeName=h2 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=4 CPUTot=4 CPULoad=2.45 AvailableFeatures=(null) \
ActiveFeatures=(null) Gres=gpu:a100:2 NodeAddr=10.77.0.12 NodeHostName=h2 Version=22.05.8 OS=Linux 6.18.44 #1 SMP \
PREEMPT_DYNAMIC @0  RealMemory=4000 AllocMem=0 FreeMem=10545 Sockets=4 Boards=1 State=IDLE+DRAIN ThreadsPerCore=1 \
TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=main,short  BootTime=2026-11-24T10:28:10 \
CfgTRES=cpu=4,mem=4000M,billing=4 AllocTRES= CapWatts=n/a CurrentWatts=0 AveWatts=0 Reason=x [root@2026-11-24T18:15:41]
"""

COMPLETED = """\
JobId=1 JobName=a b UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901759 Nice=0 Account=(null) QOS=(null) \
JobState=COMPLETED Reason=None Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0 \
RunTime=00:00:00 TimeLimit=365-00:00:00 TimeMin=N/A SubmitTime=2026-11-24T18:14:59 EligibleTime=2026-11-24T18:14:59 \
AccrueTime=2026-11-24T18:14:59 StartTime=2026-11-24T18:15:00 EndTime=2026-11-24T18:15:30 Deadline=N/A \
PreemptTime=None SuspendTime=None Partition=main AllocNode:Sid=login:0 ReqNodeList=(null) ExcNodeList=(null) \
NodeList=h[1-2] BatchHost=h1 NumNodes=2 NumCPUs=4 NumTasks=4 CPUs/Task=1 ReqB:S:C:T=0:0:*:* \
Command=/work/j.sh WorkDir=/work StdErr=/work/a b-1.out StdIn=/dev/null StdOut=/work/a b-1.out TresPerNode=gres:gpu:2
"""

DRAINED = """\
JobId=20 JobName=wrap UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901742 Nice=0 Account=(null) \
QOS=(null) JobState=PENDING \
Reason=Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions \
Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=UNLIMITED \
TimeMin=N/A SubmitTime=2026-11-24T18:15:41 EligibleTime=2026-11-24T18:15:41 AccrueTime=2026-11-24T18:15:41 \
StartTime=Unknown EndTime=Unknown Deadline=N/A SuspendTime=None Partition=main NodeList= NumNodes=2-2 NumCPUs=2
"""

# One task that runs, and the others of the array on one line.
ARRAY = """\
JobId=24 ArrayJobId=23 ArrayTaskId=0 JobName=arr.sh UserId=root(0) GroupId=root(0) MCS_label=N/A JobState=RUNNING \
Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:01 \
TimeLimit=01:00:00 TimeMin=N/A StartTime=2026-11-24T18:15:46 EndTime=2026-11-24T19:15:46 NodeList=h1 NumNodes=1
JobId=23 ArrayJobId=23 ArrayTaskId=1-2%2 JobName=arr.sh UserId=root(0) GroupId=root(0) MCS_label=N/A \
JobState=PENDING Reason=JobArrayTaskLimit Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 \
RunTime=00:00:00 TimeLimit=01:00:00 TimeMin=N/A StartTime=Unknown EndTime=Unknown NodeList= NumNodes=1
"""
